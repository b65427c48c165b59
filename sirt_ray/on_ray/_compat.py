"""Every private API of Ray and vLLM that the package depends on.

Each function names the symbol that it uses, why no public one will do, and the condition for its
removal. The symbols are those of Ray 2.60.0 and vLLM 0.29.0, which `pyproject.toml` pins; look at
every function here before either pin moves. No other module may import a private name of the two.

Ray's state API (`ray.util.state`, `ray.util.placement_group_table`) is for developers, documented
and stable enough to be used where it is needed.

Imports are inside the functions: a sampling actor, a trainer's worker and vLLM's own process each
need one of them.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_IMPORT_ATTEMPTS = 8
"""More than Ray has built-in connectors: each one can be lost to another replica once."""
_reapers: list["subprocess.Popen[bytes]"] = []
"""The reapers of this process: a pipe without a reference to it would be closed."""


# Ray Core: what a cluster has, and may get


def count_local_gpus() -> int:
    """Return the number of NVIDIA GPUs of this machine, without a connection to Ray.

    Symbol: `ray._private.accelerators.NvidiaGPUAcceleratorManager`, by which `ray.init` itself
    counts. No public API as of Ray 2.60.0: `ray.cluster_resources` needs a running Ray. Remove once
    Ray has a public count.
    """
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    return NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()


def max_cluster_resources() -> Mapping[str, float] | None:
    """Return the resources to which the autoscaler may bring the cluster; None where it does not
    publish them.

    Symbol: `ray._private.state.state.get_max_resources_from_cluster_config`, which came with
    https://github.com/ray-project/ray/issues/49501 and has no public name as of Ray 2.60.0. Remove
    once the `ray.max_cluster_resources` that the issue proposes, or another public name, is there.
    """
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config()


def has_autoscaler() -> bool:
    """Return whether the cluster has an autoscaler that may add nodes.

    The second version of Ray's autoscaler runs only on a cluster that has one. The first reports on
    every cluster, and calls nodes `node_<id>` where it only watches them.

    Symbols: `ray.autoscaler.v2.utils.is_autoscaler_v2`; and for the first version the report under
    `ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS` in Ray's internal key-value store, with
    `ray.autoscaler._private.util.format_readonly_node_type`. Remove once an autoscaler's state is
    public: https://github.com/ray-project/ray/issues/37838
    """
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler._private.util import format_readonly_node_type
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental import internal_kv

    if is_autoscaler_v2(fetch_from_server=True):
        return True
    status = internal_kv._internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report = (json.loads(status) if status else {}).get("autoscaler_report") or {}
    node_types = (report.get("node_type_mapping") or {}).items()
    return any(kind != format_readonly_node_type(node) for node, kind in node_types)


def end_children_with_this_process() -> None:
    """End all children of this process however it ends, stopped children too.

    A node's raylet does so as long as it is alive: `RAY_kill_child_processes_on_worker_exit` and
    https://github.com/ray-project/ray/pull/42992. Where Ray's head is lost, raylets and replicas
    both exit after a minute, and vLLM's own process, which watches no parent, could go on for good
    and keep its GPU. Ray has a reaper for processes of its own: it reads from a pipe that ends with
    this process, and then ends its process group.

    Symbol: `ray._private.ray_process_reaper`, run as a script. No public API as of Ray 2.60.0.
    Remove once vLLM's engine process ends with its parent, or Ray ends a replica's children also
    without a raylet.
    """
    from ray._private import ray_process_reaper

    if os.getpgrp() != os.getpid():
        os.setpgrp()
    command = [sys.executable, ray_process_reaper.__file__]
    _reapers.append(subprocess.Popen(command, stdin=subprocess.PIPE))


# Ray Jobs: the clients of a cluster's dashboard


def dashboard_url(address: str | None) -> str:
    """Return the URL of the dashboard that `JobSubmissionClient(address)` will connect to.

    Symbol: `ray.dashboard.utils.get_address_for_submission_client`, by which the client resolves
    its address. No public API as of Ray 2.60.0. Remove once the client resolves without connecting.
    """
    from ray.dashboard.utils import get_address_for_submission_client

    return get_address_for_submission_client(address)


def cluster_ray_version(client: Any) -> str:
    """Return the Ray version of the cluster of a `JobSubmissionClient`.

    Symbol: `JobSubmissionClient._server_ray_version`, which the client reads when it connects. No
    public API as of Ray 2.60.0. Remove once the attribute has a public name.
    """
    return client._server_ray_version


def serve_details(address: str) -> dict[str, Any]:
    """Return what Ray Serve runs on the cluster, over its dashboard.

    Symbol: `ray.dashboard.modules.serve.sdk.ServeSubmissionClient`, the client of `serve status`.
    No public API as of Ray 2.60.0: `serve.status` needs a driver that has joined the cluster.
    Remove once Serve has a public client of its REST API.
    """
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    return ServeSubmissionClient(address).get_serve_details()


# Ray Train


def is_startup_timeout(error: Exception) -> bool:
    """Return whether a training failed because its workers were not placed in time.

    Symbol: `ray.train.v2._internal.exceptions.WorkerGroupStartupTimeoutError`, the cause of a
    public `ray.train.ControllerError`. No public API as of Ray 2.60.0. Remove once the cause is
    public.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


# Ray Serve LLM: a vLLM engine as Ray starts it


def import_ray_llm() -> None:
    """Import `ray.serve.llm`, again where another replica's import interfered.

    On import Ray registers its built-in connectors in the cluster's key-value store, in two steps:
    look, then register (`serve/engines/vllm/kv_transfer/factory.py`, since
    https://github.com/ray-project/ray/pull/58332). Of two replicas that start at the same moment,
    one can find a connector registered between its two steps, and its import fails; the next one
    finds them there. Remove once Ray registers in one step.
    """
    for attempt in range(_IMPORT_ATTEMPTS):
        try:
            importlib.import_module("ray.serve.llm")
            return
        except ValueError as error:
            if "already registered" not in str(error) or attempt == _IMPORT_ATTEMPTS - 1:
                raise


async def start_llm_server(config: Any) -> Any:
    """Return a running `ray.serve.llm.LLMServer` for an `LLMConfig`.

    Symbols: `LLMConfig.get_or_create_callback().ctx.run_init_node`, because vLLM fetches what it
    needs by itself and Ray's own step would cost a process on each node; `LLMServer.sync_init` and
    `LLMServer.engine`, because `LLMServer.start` would also start an actor that reports usage. No
    public API for either as of Ray 2.60.0. Remove once both can be switched off by settings.
    """
    from ray.serve.llm import LLMServer

    end_children_with_this_process()
    callback = config.get_or_create_callback()
    assert callback is not None
    callback.ctx.run_init_node = False
    engine = _engine_class()
    server: Any = LLMServer.sync_init(config, engine_cls=engine)
    server.engine = engine(config)
    await server.engine.start()
    return server


def _engine_class() -> type:
    """Return Ray's vLLM engine class, changed to run in one process where that is enough.

    Symbol: `ray.llm._internal.serve.engines.vllm.vllm_engine.VLLMEngine._start_async_llm_engine`.
    No public API as of Ray 2.60.0, whose `vllm_models.py` refuses another executor backend than its
    own in `engine_kwargs`. Remove once it takes `distributed_executor_backend: uni` there.
    """
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

    class OneProcessEngine(VLLMEngine):
        """On CPU Ray requests a worker process of vLLM's besides the engine's. One process is
        enough for a model that is not sharded: it starts 8 s sooner and decodes without a hop."""

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


def engine_client(server: Any) -> Any:
    """Return vLLM's own client (`AsyncLLM`) of the engine in a running `LLMServer`.

    Symbol: `VLLMEngine._engine_client`. `LLMServer` has only OpenAI's requests, which turn token
    ids into text and JSON and back; there is no public API for token ids as of Ray 2.60.0. Remove
    once `LLMServer` completes token ids.
    """
    return server.engine._engine_client


# vLLM


def vllm_dead_error() -> type[Exception]:
    """Return the error of vLLM's client whose engine process is gone.

    Symbol: `vllm.v1.engine.exceptions.EngineDeadError`. No public name as of vLLM 0.29.0. Remove
    once it has one.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineDeadError


class StepLogger:
    """A stat logger of vLLM's that does nothing: `vllm.v1.metrics.loggers.StatLoggerBase` by shape,
    whose import would cost a replica vLLM's metrics.

    Remove with `log_steps_only`.
    """

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, **_: Any
    ) -> None: ...

    def record_sleep_state(self, *_: Any) -> None: ...

    def log(self) -> None: ...

    def log_engine_initialized(self) -> None: ...


def log_steps_only(client: Any, logger: StepLogger) -> None:
    """Replace vLLM's stat loggers by `logger`, and turn its statistics of every token off, which
    take a good part of the process's CPU time.

    The client reads the switch when its output loop starts, so the loop is started again; the
    engine reports every step all the same.

    Symbols of `vllm.v1.engine.async_llm.AsyncLLM`: `logger_manager.stat_loggers`, `log_stats`,
    `output_processor.log_stats`, `output_handler`, `_run_output_handler`. As of vLLM 0.29.0 the
    statistics of steps and of tokens have one public switch, `disable_log_stats`. Remove once they
    have one each, and Ray passes `stat_loggers` on.
    """
    client.logger_manager.stat_loggers[:] = [logger]
    client.log_stats = client.output_processor.log_stats = False
    client.output_handler.cancel()
    client.output_handler = None
    client._run_output_handler()


def repack_output_heads(model: Any) -> None:
    """Repack the output heads of a model whose weights were reloaded on CPU.

    On CPU a linear layer multiplies by a repacked copy of its weight, made when the layer is
    loaded. An output head that is tied to the input embedding has no weight of its own in the
    checkpoint, so vLLM's reload skips it (`model_executor/model_loader/reload/layerwise.py`) and it
    would go on with a copy of the old weights.

    Symbols: `ParallelLMHead` and `UnquantizedEmbeddingMethod` of
    `vllm.model_executor.layers.vocab_parallel_embedding`. Remove once the reload covers tied heads.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        UnquantizedEmbeddingMethod,
    )
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            method: Any = layer.quant_method
            if isinstance(method, UnquantizedEmbeddingMethod):
                method.process_weights_after_loading(layer)
