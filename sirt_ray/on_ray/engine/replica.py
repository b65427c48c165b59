"""What runs inside one Serve replica: one engine, the version of its weights, and its health.

SampleRequests --Replica.sample--> SampleResults
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
    Engine,
    EngineDeadError,
    ReplicaFacts,
    ReplicaLoad,
    SampleRequest,
    SampleResult,
)
from sirt_ray.storage import object_store
from sirt_ray.storage.writing import write

ENGINE_FAILED = "sirt-engine-failed: "
"""Marks the line, in whatever text Serve makes of a failed start, that holds the reason as JSON."""

_EXIT_DELAY_SECONDS = 1.0
"""Between a reply that the engine is lost and the end of the replica's process."""


def read_pointer(pointer: str) -> Policy:
    """Return the policy that every replica of a server is to serve now."""
    content = object_store.read(object_store.to_local_path(pointer))
    assert content is not None, f"{pointer} is written before a server starts"
    return Policy(**json.loads(content))


def write_pointer(pointer: Path, policy: Policy) -> None:
    """Have replicas that start from now on serve `policy`."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    write(pointer, json.dumps(asdict(policy)))
    object_store.push(pointer)


class Replica:
    """One engine behind a Serve deployment.

    Consumes requests that name the version they need. Produces completions of exactly that version:
    a replica that serves another one (it started between two loads, or missed a broadcast) loads
    the policy that the pointer names first.
    Waits for: requests in flight, before weights change; the engine, at most `timeout_s` for one
    request. On failure: a start fails with the engine's own reason; an engine that died, or that
    finished nothing in `timeout_s`, ends the replica's process, and Serve starts a new one.
    """

    async def __init__(self, role: str, pointer: str, engine: Engine, timeout_s: float) -> None:
        self._role = role
        self._pointer = pointer
        # Serve compares the arguments of a deployment, by pickling them: they must not change.
        self._engine = copy.deepcopy(engine)
        self._timeout_s = timeout_s
        self._loading = asyncio.Lock()
        self._name = uuid.uuid4().hex
        self._last_finished = time.monotonic()
        self._policy = read_pointer(pointer)
        try:
            await self._engine.start(self._policy)
        except Exception as error:
            # Untrusted edge: an engine fails in many ways. The reason has to reach the user through
            # Serve's status text.
            raise StageError(f"{ENGINE_FAILED}{json.dumps(str(error))}") from None
        await self._follow_pointer()

    async def facts(self) -> ReplicaFacts:
        """Return what the replica runs."""
        import psutil

        process = psutil.Process()
        children = tuple(child.pid for child in process.children(recursive=True))
        return ReplicaFacts(
            self._policy.version, self._engine.max_model_len, (process.pid, *children)
        )

    async def load_now(self) -> tuple[str, ReplicaLoad]:
        """Return the replica's name and how busy it is."""
        return self._name, self._engine.load_now()

    async def check_health(self) -> None:
        """Called by Serve every few seconds; it replaces the replica where this raises."""
        await self._engine.check_health()

    async def sample(self, requests: tuple[SampleRequest, ...]) -> tuple[SampleResult, ...]:
        """Return the result of each request, in their order, all at once: each call has its cost.

        Raises StageError where the pointer names another version than the requests, TimeoutError
        where the engine does not finish them in `timeout_s`, and RuntimeError where it died or its
        weights changed meanwhile.
        """
        version = await self._require_version(requests)
        started = time.monotonic()
        completions = [
            asyncio.ensure_future(self._engine.complete(request)) for request in requests
        ]
        for completion in completions:
            completion.add_done_callback(self._note_finished)
        try:
            async with asyncio.timeout(self._timeout_s):
                results = await asyncio.gather(*completions)
        except TimeoutError:
            if self._last_finished < started:
                self._end_process()
            raise TimeoutError(
                f"the {self._role} engine did not finish a request within {self._timeout_s:g} s"
            ) from None
        except EngineDeadError as error:
            self._end_process()
            raise RuntimeError(f"the {self._role} engine died: {error}") from None
        if self._policy.version != version:
            raise RuntimeError("the weights changed while this request was waiting")
        return tuple(results)

    async def load(self, policy: Policy) -> str:
        """Load `policy`'s weights into the running engine; return the version that is served."""
        async with self._loading:
            if self._policy != policy:
                await self._engine.load(policy)
                self._policy = policy
        return self._policy.version

    async def _follow_pointer(self) -> None:
        await self.load(read_pointer(self._pointer))

    async def _require_version(self, requests: tuple[SampleRequest, ...]) -> str:
        """Return the version that is served, once it is that of all requests."""
        if any(request.version != self._policy.version for request in requests):
            await self._follow_pointer()
        version = self._policy.version
        for request in requests:
            if request.version != version:
                raise StageError(
                    f"the {self._role} engine serves the weights '{version}', but"
                    f" '{request.version}' was requested. Two jobs may be using the same run name"
                    " on this cluster"
                )
        return version

    def _note_finished(self, completion: "asyncio.Future[SampleResult]") -> None:
        """Note that the engine works. A request that it refuses may not have reached it."""
        if completion.cancelled() or completion.exception() is not None:
            return
        if completion.result().failure is None:
            self._last_finished = time.monotonic()

    def _end_process(self) -> None:
        """End this process a moment later, so that the reason gets out, and the engine's with it:
        the engine will not come back, and its replica would attract requests by being idle."""
        asyncio.get_running_loop().call_later(_EXIT_DELAY_SECONDS, os._exit, 1)
