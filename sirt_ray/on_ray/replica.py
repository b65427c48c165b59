"""What runs inside one Serve replica: one vLLM engine, answering with token ids.

The replica wraps Ray's `LLMServer`. Callers exchange the small records below with it, so that only
the replica, and neither the driver nor the sampling actors, has to import vLLM (7 s, 0.6 GB).

    SampleRequests of a question --Replica.sample--> SampleReplies
    Policy --Replica.load--> version          weights change on the running engine
"""

import asyncio
import importlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import StageError

ENGINE_FAILED = "sirt-engine-failed: "
"""Marks the line, in whatever text Serve makes of a failed start, that holds the reason as JSON."""

_REASON_CHARACTERS = 600
_IMPORT_ATTEMPTS = 8
"""More than Ray has built-in connectors: each one can be lost to another replica once."""
_ERROR_LINE = re.compile(r"\b(?:[A-Za-z_.]*(?:Error|Exception)): .+")
_NOT_THE_ROOT = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "EngineCore encountered an issue",
    "EngineDeadError",
)
_LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """`n` completions of one prompt. `version`: the weights that must write them."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    version: str


@dataclass(frozen=True, slots=True)
class Choice:
    completion_ids: tuple[int, ...]
    """With the end-of-sequence token, where the model wrote one."""
    finish_reason: str


@dataclass(frozen=True, slots=True)
class SampleReply:
    version: str
    choices: tuple[Choice, ...]
    refused: str | None = None
    """Why the engine will never answer this request; there are no choices then."""


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    version: str
    max_model_len: int
    process_ids: tuple[int, ...]
    """The replica's own, then those of the engine's processes below it."""


def read_pointer(pointer: str) -> Policy:
    """The policy that every replica of a server is to serve now."""
    return Policy(**json.loads(Path(pointer).read_text()))


def write_pointer(pointer: Path, policy: Policy) -> None:
    pointer.parent.mkdir(parents=True, exist_ok=True)
    partial = pointer.with_name(f".{pointer.name}.partial")
    partial.write_text(json.dumps(asdict(policy)))
    partial.replace(pointer)


class Replica:
    """One engine behind a Serve deployment.

    Consumes requests that name the version they want. Produces completions of exactly that version:
    a replica that serves another one (it started between two loads, or missed a broadcast) reads
    the pointer and loads what stands there first.
    Waits for: requests in flight, before weights change. On failure: a start fails with the
    engine's own reason; a dead engine fails the health check and Serve starts a new replica.
    """

    async def __init__(self, role: str, pointer: str, llm_config: dict[str, Any]) -> None:
        self._pointer = pointer
        self._role = role
        self._loading = asyncio.Lock()
        self._policy = read_pointer(pointer)
        self._logged = _LogMark()
        try:
            await self._start(llm_config)
        except Exception as error:
            # Untrusted edge: the engine fails in many ways, in other processes too. The first
            # reason has to reach the user through Serve's status text.
            reason = failure_reason(str(error), self._logged.text_since())
            raise StageError(f"{ENGINE_FAILED}{json.dumps(reason)}") from None
        await self._follow_pointer()

    async def _start(self, llm_config: dict[str, Any]) -> None:
        _import_ray_llm()
        from ray.serve.llm import LLMConfig, LLMServer

        loading = {"model_id": self._role, "model_source": self._policy.path}
        config = LLMConfig(**llm_config, model_loading_config=loading)
        if self._policy.revision is not None:
            config.engine_kwargs["revision"] = self._policy.revision
            config.engine_kwargs["tokenizer_revision"] = self._policy.revision
        # vLLM fetches what it needs by itself; Ray's own step would cost a process on each node.
        callback = config.get_or_create_callback()
        assert callback is not None
        callback.ctx.run_init_node = False
        self._server: Any = LLMServer.sync_init(config, engine_cls=_engine_class())
        # Not `self._server.start()`: that would also start an actor which reports usage.
        self._server.engine = _engine_class()(config)
        await self._server.engine.start()

    async def facts(self) -> ReplicaFacts:
        import psutil

        own = psutil.Process()
        children = tuple(child.pid for child in own.children(recursive=True))
        model = self._server.engine._engine_client.model_config
        return ReplicaFacts(self._policy.version, model.max_model_len, (own.pid, *children))

    async def check_health(self) -> None:
        await self._server.check_health()

    async def sample(self, requests: tuple[SampleRequest, ...]) -> tuple[SampleReply, ...]:
        """The replies to all requests of a question, in their order. They come in one call: each
        call has its cost."""
        return tuple(await asyncio.gather(*map(self._sample, requests)))

    async def _sample(self, request: SampleRequest) -> SampleReply:
        """Completions of one prompt; a reply with `refused` where the engine will not have it."""
        from ray.serve.llm.openai_api_models import CompletionRequest, ErrorResponse

        if self._policy.version != request.version:
            await self._follow_pointer()
        version = self._policy.version
        if version != request.version:
            raise StageError(
                f"the {self._role} engine serves the weights '{version}', but '{request.version}'"
                " was asked for. Two jobs may be using the same run name on this cluster"
            )
        completion_request = CompletionRequest(
            model=self._role,
            prompt=list(request.prompt_ids),
            n=request.n,
            seed=request.seed,
            temperature=request.temperature,
            top_p=request.top_p,
            # Said although they are vLLM's defaults: otherwise the model's own
            # generation_config.json would decide, and the job file would not.
            top_k=-1,
            min_p=0.0,
            repetition_penalty=1.0,
            max_tokens=request.max_tokens,
            return_token_ids=True,
        )
        reply = await self._complete(completion_request)
        if isinstance(reply, ErrorResponse):
            if reply.error.code < 500:
                return SampleReply(version, (), reply.error.message)
            raise RuntimeError(reply.error.message)
        if self._policy.version != version:
            raise RuntimeError("the weights changed while this request was waiting")
        choices = (
            Choice(tuple(choice.token_ids), choice.finish_reason) for choice in reply.choices
        )
        return SampleReply(version, tuple(choices))

    async def _complete(self, request: Any) -> Any:
        """The server's reply. A dead engine cannot come back, and its replica would draw requests
        to it by being idle: the process ends, a moment later so that the reason gets out."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await anext(aiter(await self._server.completions(request)))
        except EngineDeadError as error:
            reason = failure_reason(str(error), self._logged.text_since())
            asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, os._exit, 1)
            raise RuntimeError(f"the {self._role} engine died: {reason}") from None

    async def load(self, policy: Policy) -> str:
        """Bring `policy`'s weights into the running engine; the version that is served now."""
        async with self._loading:
            if self._policy != policy:
                await self._server.pause(mode="wait")
                await self._server.collective_rpc(
                    "load_weights_from", args=(_weights_folder(policy),)
                )
                await self._server.reset_prefix_cache()
                self._policy = policy
                await self._server.resume()
        return self._policy.version

    async def _follow_pointer(self) -> None:
        await self.load(read_pointer(self._pointer))


def _weights_folder(policy: Policy) -> str:
    """Where the weights lie; vLLM reloads from a folder, and knows no revision then."""
    if Path(policy.path).is_dir():
        return policy.path
    from huggingface_hub import snapshot_download

    return snapshot_download(policy.path, revision=policy.revision)


def _import_ray_llm() -> None:
    """Import `ray.serve.llm`, again where another replica's import got in between.

    On import Ray registers its built-in connectors in the cluster's key-value store, in two steps:
    look, then register (ray 2.60, serve/engines/vllm/kv_transfer/factory.py). Of two replicas that
    start at the same moment, one can find a connector registered between its two steps, and its
    import fails; the next one finds them there. To be removed once Ray registers in one step.
    """
    for attempt in range(_IMPORT_ATTEMPTS):
        try:
            importlib.import_module("ray.serve.llm")
            return
        except ValueError as error:
            if "already registered" not in str(error) or attempt == _IMPORT_ATTEMPTS - 1:
                raise


def _engine_class() -> type:
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

    class OneProcessEngine(VLLMEngine):
        """On CPU Ray asks vLLM for a worker process beside the engine's. One process is enough for
        a model that is not sharded: it starts 8 s sooner and decodes without a hop between."""

        def _start_async_llm_engine(
            self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any
        ) -> Any:
            parallel = vllm_engine_config.parallel_config
            device = vllm_engine_config.device_config
            if device.device_type == "cpu" and parallel.world_size == 1:
                parallel.distributed_executor_backend = "uni"
            return super()._start_async_llm_engine(
                vllm_engine_args, vllm_engine_config, placement_group
            )

    return OneProcessEngine


def failure_reason(message: str, logged: str) -> str:
    """The engine's own reason for a failure.

    `message` is the exception that reached us; where it only says that another process failed, the
    reason is the last exception that the engine's processes have `logged`.
    """
    if any(said in message for said in _NOT_THE_ROOT):
        lines = _ERROR_LINE.findall(logged)
        causes = [line for line in lines if not any(said in line for said in _NOT_THE_ROOT)]
        message = causes[-1] if causes else message
    short = " ".join(message.split())
    return short if len(short) <= _REASON_CHARACTERS else short[:_REASON_CHARACTERS] + " ..."


class _LogMark:
    """A place in the log files that Ray gives to this process and, so, to its children."""

    def __init__(self) -> None:
        links = (Path(f"/proc/self/fd/{number}") for number in (1, 2))
        logs = (Path(os.readlink(link)) for link in links if link.exists())
        self._ends = {log: log.stat().st_size for log in logs if log.is_file()}

    def text_since(self) -> str:
        """What has been logged since the mark was made."""
        texts: list[str] = []
        for path, end in self._ends.items():
            with path.open("rb") as log:
                log.seek(end)
                texts.append(log.read().decode(errors="replace"))
        return "\n".join(texts)
