"""What runs inside one Serve replica: one engine, the version of its weights, and its health.

SampleRequests --Replica.sample--> SampleReplies
Policy --Replica.load--> version          weights change on the running engine
"""

import asyncio
import copy
import json
import os
import time
import uuid
from dataclasses import asdict
from pathlib import Path

from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import StageError
from sirt_ray.on_ray.engine.protocol import (
    Answered,
    Engine,
    EngineDeadError,
    RefusedError,
    ReplicaFacts,
    ReplicaLoad,
    SampleReply,
    SampleRequest,
)
from sirt_ray.storage import object_store

ENGINE_FAILED = "sirt-engine-failed: "
"""Marks the line, in whatever text Serve makes of a failed start, that holds the reason as JSON."""

_LAST_WORDS_SECONDS = 1.0


def read_pointer(pointer: str) -> Policy:
    """The policy that every replica of a server is to serve now."""
    content = object_store.read(object_store.to_local_path(pointer))
    assert content is not None, f"{pointer} is written before a server starts"
    return Policy(**json.loads(content))


def write_pointer(pointer: Path, policy: Policy) -> None:
    pointer.parent.mkdir(parents=True, exist_ok=True)
    partial = pointer.with_name(f".{pointer.name}.partial")
    partial.write_text(json.dumps(asdict(policy)))
    partial.replace(pointer)
    object_store.push(pointer)


class Replica:
    """One engine behind a Serve deployment.

    Consumes requests that name the version they want. Produces completions of exactly that version:
    a replica that serves another one (it started between two loads, or missed a broadcast) reads
    the pointer and loads what stands there first.
    Waits for: requests under way, before weights change; the engine, at most `timeout_s` for one
    request. On failure: a start fails with the engine's own reason; an engine that died, or that
    finished nothing in `timeout_s`, ends the replica's process, and Serve starts a new one.
    """

    async def __init__(self, role: str, pointer: str, engine: Engine, timeout_s: float) -> None:
        self._role = role
        self._pointer = pointer
        # Serve looks through what a deployment was made of, by pickling it: that stays as it came.
        self._engine = copy.deepcopy(engine)
        self._timeout_s = timeout_s
        self._loading = asyncio.Lock()
        self._name = uuid.uuid4().hex
        self._last_answer = time.monotonic()
        self._policy = read_pointer(pointer)
        try:
            await self._engine.start(self._policy)
        except Exception as error:
            # Untrusted edge: an engine fails in many ways. The reason has to reach the user through
            # Serve's status text.
            raise StageError(f"{ENGINE_FAILED}{json.dumps(str(error))}") from None
        await self._follow_pointer()

    async def facts(self) -> ReplicaFacts:
        import psutil

        own = psutil.Process()
        children = tuple(child.pid for child in own.children(recursive=True))
        return ReplicaFacts(self._policy.version, self._engine.max_model_len, (own.pid, *children))

    async def load_now(self) -> tuple[str, ReplicaLoad]:
        """The replica's name and how busy it is."""
        return self._name, self._engine.load_now()

    async def check_health(self) -> None:
        """Called by Serve every few seconds; it replaces the replica where this raises."""
        await self._engine.check_health()

    async def sample(self, requests: tuple[SampleRequest, ...]) -> tuple[SampleReply, ...]:
        """The replies to all requests, in their order. They come together: each call has its
        cost."""
        return tuple(await asyncio.gather(*map(self._sample, requests)))

    async def load(self, policy: Policy) -> str:
        """Bring `policy`'s weights into the running engine; the version that is served now."""
        async with self._loading:
            if self._policy != policy:
                await self._engine.load(policy)
                self._policy = policy
        return self._policy.version

    async def _follow_pointer(self) -> None:
        await self.load(read_pointer(self._pointer))

    async def _sample(self, request: SampleRequest) -> SampleReply:
        """Completions of one prompt; a reply with `refused` where the engine will not have it."""
        if self._policy.version != request.version:
            await self._follow_pointer()
        version = self._policy.version
        if version != request.version:
            raise StageError(
                f"the {self._role} engine serves the weights '{version}', but '{request.version}'"
                " was asked for. Two jobs may be using the same run name on this cluster"
            )
        try:
            answered = await self._complete(request)
        except RefusedError as refused:
            return SampleReply(version, None, str(refused))
        if self._policy.version != version:
            raise RuntimeError("the weights changed while this request was waiting")
        return SampleReply(version, answered)

    async def _complete(self, request: SampleRequest) -> Answered:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                answered = await self._engine.complete(request)
        except TimeoutError:
            if self._last_answer < began:
                self._end_process()
            raise TimeoutError(
                f"the {self._role} engine did not finish a request within {self._timeout_s:g} s"
            ) from None
        except EngineDeadError as error:
            self._end_process()
            raise RuntimeError(f"the {self._role} engine died: {error}") from None
        self._last_answer = time.monotonic()
        return answered

    def _end_process(self) -> None:
        """This engine will not come back, and its replica would draw requests to it by being idle.
        The process ends a moment later, so that the reason gets out, and the engine's with it."""
        asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, os._exit, 1)
