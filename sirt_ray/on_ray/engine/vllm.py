"""vLLM inside a replica: started as Ray's `LLMServer` starts it, called without the OpenAI layer.

`LLMServer` knows how an engine is placed on a cluster. Completions go to the engine's client
directly, token ids in and out: the layer for HTTP between the two would turn each of them into text
and into JSON's objects and back.
"""

import asyncio
import itertools
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ModelError
from sirt_ray.on_ray import _compat
from sirt_ray.on_ray.engine.lora import Adapter, adapter_of, check_adapter, lora_kwargs
from sirt_ray.on_ray.engine.protocol import (
    EngineDeadError,
    ReplicaLoad,
    SampledChoice,
    SampleRequest,
    SampleResult,
)
from sirt_ray.on_ray.engine.weights import engine_path, local_folder, without_wildcards

_REASON_CHARACTERS = 600
_ERROR_LINE = re.compile(r"\b(?:[A-Za-z_.]*(?:Error|Exception)): .+")
_NOT_THE_ROOT = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "EngineCore encountered an issue",
    "EngineDeadError",
)


def llm_config(name: str, source: str, settings: dict[str, Any]) -> Any:
    """Return Ray's `LLMConfig` for the model `source`, a folder or a hub name, that requests call
    `name`. `settings`: as `server.llm_settings` returns them."""
    _compat.import_ray_llm()
    from ray.serve.llm import LLMConfig

    loading = {"model_id": name, "model_source": source}
    return LLMConfig(**settings, model_loading_config=loading)


def failure_reason(message: str, log: str) -> str:
    """Return the engine's own reason for a failure.

    `message` is the exception that reached us; where it only reports that another process failed,
    the reason is the last exception in the `log` of the engine's processes.
    """
    if any(text in message for text in _NOT_THE_ROOT):
        lines = _ERROR_LINE.findall(log)
        causes = [line for line in lines if not any(text in line for text in _NOT_THE_ROOT)]
        message = causes[-1] if causes else message
    short = " ".join(message.split())
    return short if len(short) <= _REASON_CHARACTERS else short[:_REASON_CHARACTERS] + " ..."


class LogMark:
    """A position in the log files that Ray gives to this process and, so, to its children."""

    def __init__(self) -> None:
        links = (Path(f"/proc/self/fd/{number}") for number in (1, 2))
        logs = (Path(os.readlink(link)) for link in links if link.exists())
        self._ends = {log: log.stat().st_size for log in logs if log.is_file()}

    def text_since(self) -> str:
        """Return what has been logged since the mark was made."""
        texts: list[str] = []
        for path, end in self._ends.items():
            with path.open("rb") as log:
                log.seek(end)
                texts.append(log.read().decode(errors="replace"))
        return "\n".join(texts)


class VllmEngine:
    """`protocol.Engine` on vLLM.

    Example::

        engine = VllmEngine("student", {"engine_kwargs": {...}, "accelerator_config": {...}})
        await engine.start(Policy("round_00", "runs/demo/round_00/student"))
        result = await engine.complete(SampleRequest("", (1, 17, 9), n=8, ...))
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
        self._server: Any = await _compat.start_llm_server(config)
        self._client: Any = _compat.engine_client(self._server)
        self._load = _LoadLogger()
        _compat.log_steps_only(self._client, self._load)
        if adapter is not None:
            await self._take(adapter, policy.version)

    def _config(self, adapter: Adapter | None) -> Any:
        """Return Ray's `LLMConfig` for the weights that the engine starts with."""
        weights = self._weights
        config = llm_config(self._role, engine_path(weights), self._settings)
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
        """Longest prompt plus completion, in tokens."""
        return self._client.model_config.max_model_len

    async def check_health(self) -> None:
        """Raise where the engine is dead."""
        await self._server.check_health()

    async def load(self, policy: Policy) -> None:
        """Serve other weights. Raises ModelError, and goes on with the present ones, where the
        engine cannot take the adapter that the policy is."""
        adapter = await asyncio.to_thread(adapter_of, policy)
        if adapter is not None:
            await self._load_adapter(adapter, policy.version)
            return
        folder = await asyncio.to_thread(lambda: without_wildcards(local_folder(policy)))
        await self._server.pause(mode="wait")
        # With LoRA, this removes the adapter, too. Where it fails, the engine stays paused: its
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
            # Untrusted edge: vLLM finds what is wrong with an adapter in another process.
            reason = failure_reason(str(error), "")
            raise ModelError(f"the adapter {adapter.folder} cannot be loaded: {reason}") from None
        finally:
            await self._resume()

    async def _resume(self) -> None:
        await self._server.reset_prefix_cache()
        await self._server.resume()

    async def _take(self, adapter: Adapter, version: str) -> None:
        """Replace the adapter that is served. Its name and number are new each time: vLLM would
        keep the weights that it knows under an old one."""
        from vllm.lora.request import LoRARequest

        number = next(self._adapter_ids)
        request = LoRARequest(f"{version}-{number}", number, str(adapter.folder))
        await self._client.add_lora(request)
        if self._adapter is not None:
            await self._client.remove_lora(self._adapter.lora_int_id)
        self._adapter = request

    def load_now(self) -> ReplicaLoad:
        """Return how busy the engine is."""
        return self._load.now

    async def complete(self, request: SampleRequest) -> SampleResult:
        """Return the completions, or a failure where vLLM cannot take the request. Raises
        EngineDeadError where the engine's process is gone."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

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
        except _compat.vllm_dead_error() as error:
            reason = failure_reason(str(error), self._logged.text_since())
            raise EngineDeadError(reason) from None
        except ValueError as error:
            # vLLM raises it in this process, before it starts, for a request that it cannot take:
            # too long, or with a token that the model does not know.
            return SampleResult.refused(str(error))
        outputs = sorted(output.outputs, key=lambda one: one.index)
        choices = tuple(SampledChoice(tuple(one.token_ids), one.finish_reason) for one in outputs)
        generated = sum(len(choice.completion_ids) for choice in choices)
        self._load.add_generated(generated)
        return SampleResult(
            choices, prompt_tokens=len(request.prompt_ids), completion_tokens=generated
        )


class _LoadLogger(_compat.StepLogger):
    """The load of one engine: a minimal stat logger in place of vLLM's own, which keep dozens of
    histograms. vLLM reports every step to it, and the engine every finished request."""

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

    def add_generated(self, tokens: int) -> None:
        self.now = replace(self.now, generated_tokens=self.now.generated_tokens + tokens)
