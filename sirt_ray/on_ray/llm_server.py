"""Ray's `LLMServer` with a vLLM engine in it: how one is started, and why one did not start."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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
