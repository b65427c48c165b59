"""vLLM inside a replica: started as Ray's `LLMServer` starts it, asked without the OpenAI layer.

`LLMServer` knows how an engine gets its place on a cluster. Completions go to the engine's client
directly, token ids in and out: the layer for HTTP between the two would turn each of them into text
and into JSON's objects and back.
"""

import asyncio
import importlib
import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ModelError
from sirt_ray.on_ray.engine.lora import Adapter, adapter_of, check_adapter, lora_kwargs
from sirt_ray.on_ray.engine.protocol import (
    Answered,
    EngineDeadError,
    RefusedError,
    ReplicaLoad,
    SampledChoice,
    SampleRequest,
)
from sirt_ray.on_ray.engine.weights import local_folder, on_hub

# FOLDED on_ray.llm_server: Ray's `LLMServer` with a vLLM engine in it: how one is started, and why one did not start.

_REASON_CHARACTERS = 600
_reapers: list["subprocess.Popen[bytes]"] = []
"""Of this process: a pipe that nobody refers to any more would be closed."""
_IMPORT_ATTEMPTS = 8
"""More than Ray has built-in connectors: each one can be lost to another replica once."""
_ERROR_LINE = re.compile(r"\b(?:[A-Za-z_.]*(?:Error|Exception)): .+")
_NOT_THE_ROOT = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "EngineCore encountered an issue",
    "EngineDeadError",
)


def llm_config(name: str, source: str, settings: dict[str, Any]) -> Any:
    """Ray's `LLMConfig` for the model `source`, a folder or a hub name, that is asked for by
    `name`. `settings`: as `deployments.llm_settings` gives them."""
    import_ray_llm()
    from ray.serve.llm import LLMConfig

    loading = {"model_id": name, "model_source": source}
    return LLMConfig(**settings, model_loading_config=loading)


async def start_llm_server(config: Any) -> Any:
    """A running `LLMServer`."""
    from ray.serve.llm import LLMServer

    _end_children_with_this_process()
    # vLLM fetches what it needs by itself; Ray's own step would cost a process on each node.
    callback = config.get_or_create_callback()
    assert callback is not None
    callback.ctx.run_init_node = False
    engine = engine_class()
    server: Any = LLMServer.sync_init(config, engine_cls=engine)
    # Not `server.start()`: that would also start an actor which reports usage.
    server.engine = engine(config)
    await server.engine.start()
    return server


def _end_children_with_this_process() -> None:
    """However this process ends, end what it has started, stopped processes too.

    A node's raylet does so as long as it lives. Where Ray's head is lost, raylets and replicas both
    give up after a minute, and vLLM's own process, which watches nobody, could go on for good and
    keep its GPU. Ray has a reaper for processes of its own: it reads from a pipe that ends with us,
    and then ends our process group.
    """
    from ray._private import ray_process_reaper

    if os.getpgrp() != os.getpid():
        os.setpgrp()
    command = [sys.executable, ray_process_reaper.__file__]
    _reapers.append(subprocess.Popen(command, stdin=subprocess.PIPE))


def engine_client(server: Any) -> Any:
    """vLLM's own client (`AsyncLLM`) of the engine in a running `LLMServer`."""
    return server.engine._engine_client


def import_ray_llm() -> None:
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


def engine_class() -> type:
    """Ray's vLLM engine, in one process where it can be, with its load at hand."""
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


class LogMark:
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


class VllmEngine:
    """`sirt_ray.on_ray.requests.Engine` on vLLM.

    Example::

        engine = VllmEngine("student", {"engine_kwargs": {...}, "accelerator_config": {...}})
        await engine.start(Policy("round_00", "runs/demo/round_00/student"))
        choices = await engine.complete(SampleRequest((1, 17, 9), n=8, ...))
    """

    def __init__(self, role: str, settings: dict[str, Any]) -> None:
        self._role = role
        self._settings = settings
        self._request_ids = itertools.count()
        self._adapter_ids = itertools.count(1)
        self._adapter: Any = None
        """vLLM's `LoRARequest` of the adapter that is served; None: the weights as they are."""

    async def start(self, policy: Policy) -> None:
        """Raises RuntimeError with the engine's own reason where it does not start."""
        self._logged = LogMark()
        try:
            await self._start(policy)
        except Exception as error:
            # Untrusted edge: the engine fails in many ways, in other processes too.
            raise RuntimeError(failure_reason(str(error), self._logged.text_since())) from None

    async def _start(self, policy: Policy) -> None:
        adapter = await asyncio.to_thread(adapter_of, policy)
        self._weights = policy if adapter is None else adapter.base
        config = await asyncio.to_thread(self._config, adapter)
        self._server: Any = await start_llm_server(config)
        self._client: Any = engine_client(self._server)
        self._load = _Load()
        self._watch_steps_only()
        if adapter is not None:
            await self._take(adapter, policy.version)

    def _watch_steps_only(self) -> None:
        """Have vLLM count nothing for every single token, which takes a good part of this process's
        time. It reads the switch when its loop begins; the engine tells of each step all the
        same."""
        client = self._client
        client.logger_manager.stat_loggers[:] = [self._load]
        client.log_stats = client.output_processor.log_stats = False
        client.output_handler.cancel()
        client.output_handler = None
        client._run_output_handler()

    def _config(self, adapter: Adapter | None) -> Any:
        """Ray's `LLMConfig` for the weights that the engine starts with."""
        weights = self._weights
        # vLLM fetches from the hub what it needs and no more.
        source = weights.path if on_hub(weights) else str(local_folder(weights))
        config = llm_config(self._role, source, self._settings)
        if weights.revision is not None:
            config.engine_kwargs["revision"] = weights.revision
            config.engine_kwargs["tokenizer_revision"] = weights.revision
        if adapter is not None and "max_lora_rank" not in config.engine_kwargs:
            config.engine_kwargs.update(lora_kwargs(adapter.rank))
        self._max_lora_rank: int | None = config.engine_kwargs.get("max_lora_rank")
        if adapter is not None:
            check_adapter(adapter, weights, self._max_lora_rank)
        return config

    @property
    def max_model_len(self) -> int:
        return self._client.model_config.max_model_len

    async def check_health(self) -> None:
        await self._server.check_health()

    async def load(self, policy: Policy) -> None:
        """Raises ModelError, and goes on with what it serves, where the engine cannot take the
        adapter that the policy is."""
        adapter = await asyncio.to_thread(adapter_of, policy)
        if adapter is not None:
            await self._load_adapter(adapter, policy.version)
            return
        folder = await asyncio.to_thread(local_folder, policy)
        await self._server.pause(mode="wait")
        # With LoRA, this takes the adapter away, too. Where it fails, the engine stays silent: its
        # weights are a mixture then.
        await self._server.collective_rpc("load_weights_from", args=(str(folder),))
        self._weights, self._adapter = policy, None
        await self._resume()

    async def _load_adapter(self, adapter: Adapter, version: str) -> None:
        await asyncio.to_thread(check_adapter, adapter, self._weights, self._max_lora_rank)
        await self._server.pause(mode="wait")
        try:
            await self._take(adapter, version)
        except Exception as error:
            # Untrusted edge: what vLLM finds wrong with an adapter it finds in another process.
            reason = failure_reason(str(error), "")
            raise ModelError(f"the adapter {adapter.folder} cannot be loaded: {reason}") from None
        finally:
            await self._resume()

    async def _resume(self) -> None:
        await self._server.reset_prefix_cache()
        await self._server.resume()

    async def _take(self, adapter: Adapter, version: str) -> None:
        """Put the adapter in the place of the one that is served. Its name and number are new each
        time: vLLM would go on with what it knows under an old one."""
        from vllm.lora.request import LoRARequest

        number = next(self._adapter_ids)
        request = LoRARequest(f"{version}-{number}", number, str(adapter.folder))
        await self._client.add_lora(request)
        if self._adapter is not None:
            await self._client.remove_lora(self._adapter.lora_int_id)
        self._adapter = request

    def load_now(self) -> ReplicaLoad:
        return self._load.now

    async def complete(self, request: SampleRequest) -> Answered:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

        params = SamplingParams(
            n=request.n,
            seed=request.seed,
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_tokens,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt_ids))
        name = f"{self._role}-{next(self._request_ids)}"
        try:
            answers = self._client.generate(prompt, params, name, lora_request=self._adapter)
            *_, output = [part async for part in answers]
        except VllmDeadError as error:
            reason = failure_reason(str(error), self._logged.text_since())
            raise EngineDeadError(reason) from None
        except ValueError as error:
            # What vLLM raises, in this process and before it begins, for a request that it will
            # not have: too long, or with a token that the model does not know.
            raise RefusedError(str(error)) from None
        outputs = sorted(output.outputs, key=lambda one: one.index)
        choices = tuple(SampledChoice(tuple(one.token_ids), one.finish_reason) for one in outputs)
        generated = sum(len(choice.completion_ids) for choice in choices)
        self._load.generated(generated)
        return Answered(choices, prompt_tokens=len(request.prompt_ids), completion_tokens=generated)


class _Load:
    """Told by vLLM of every step, in the place of its own loggers, which keep dozens of histograms:
    `vllm.v1.metrics.loggers.StatLoggerBase` by shape. Told by us of every answer."""

    def __init__(self) -> None:
        self.now = ReplicaLoad()

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, **_: Any
    ) -> None:
        if scheduler_stats is None:
            return
        cache = scheduler_stats.prefix_cache_stats
        self.now = replace(
            self.now,
            running=scheduler_stats.num_running_reqs,
            waiting=scheduler_stats.num_waiting_reqs,
            prefix_queried_tokens=self.now.prefix_queried_tokens + cache.queries,
            prefix_hit_tokens=self.now.prefix_hit_tokens + cache.hits,
        )

    def generated(self, tokens: int) -> None:
        self.now = replace(self.now, generated_tokens=self.now.generated_tokens + tokens)

    def record_sleep_state(self, *_: Any) -> None: ...

    def log(self) -> None: ...

    def log_engine_initialized(self) -> None: ...
