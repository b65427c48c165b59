"""One model behind one Serve application: started once, then given new weights by path.

    server = ModelServer.deploy("student", policy, engine, run="demo", pointers=run_dir / "serving")
    other = ModelServer.deploy("teacher", ...)       # starts at the same time
    server.wait_until_ready()
    server.load(Policy("round_01", path))            # the running engines; no restart
    server.stop()

A small file in the run folder, the pointer, names the weights to serve: a replica that is started
later, by autoscaling or after a crash, reads it.
"""

import json
import re
import time
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.handle import DeploymentHandle

from sirt_ray.config.resources import EngineConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ModelError, ResourceError, SirtError, StageError
from sirt_ray.logs import Wait, waiting
from sirt_ray.on_ray import cluster
from sirt_ray.on_ray.cluster import check_resources, describe_pending, has_pending, on_gpu
from sirt_ray.on_ray.engine.options import engine_kwargs, environment, max_calls, target_calls
from sirt_ray.on_ray.engine.protocol import Engine, ReplicaFacts, ReplicaLoad
from sirt_ray.on_ray.engine.replica import ENGINE_FAILED, Replica, write_pointer
from sirt_ray.on_ray.engine.vllm import VllmEngine
from sirt_ray.on_ray.serve_apps import app_name
from sirt_ray.planning.resources import bundles
from sirt_ray.storage import object_store

_POLL_SECONDS = 0.2
_LOAD_TIMEOUT_SECONDS = 1800.0
_DEATH_NOTICE_SECONDS = 60.0
"""Within so long Serve notices that a replica died."""
_FACTS_TIMEOUT_SECONDS = 60.0
_ENDING = ("STOPPING", "STOPPED")
_MEMORY = re.compile(r"memory|KV cache|kv cache", re.IGNORECASE)
"""In the reason of a failed start: it lacks memory."""
_MISSING = re.compile(r"No module named|cannot import name")
"""In the reason of a failed start: it lacks a package. Any other start has a model that vLLM cannot
serve."""


class ModelServer:
    """A running (or starting) Serve application with one model.

    Produces completions through `handle`. Waits for: placement and the engines' start, in
    `wait_until_ready`. On failure: the application is removed and the engine's reason is raised.
    """

    def __init__(
        self,
        role: str,
        policy: Policy,
        engine: EngineConfig,
        app: str,
        pointer: Path,
        handle: DeploymentHandle,
    ) -> None:
        self.role = role
        self.engine = engine
        self.app = app
        self.handle = handle
        self.policy = policy
        self._pointer = pointer
        self._facts: ReplicaFacts | None = None

    @classmethod
    def deploy(
        cls,
        role: str,
        policy: Policy,
        engine: EngineConfig,
        *,
        run: str,
        pointers: Path,
        samples_per_question: int = 1,
        serving: Engine | None = None,
    ) -> "ModelServer":
        """Start the engines and return before they are ready.

        `run`: the run's name on the cluster. `pointers`: a folder that every node sees. `serving`:
        the engine of each replica; None: vLLM. An application that a killed job of the same run
        left is replaced. Raises ResourceError for resources that the cluster can never provide.
        """
        check_resources(cluster.of_engine(role, engine))
        app, pointer = app_name(run, role), pointers.absolute() / f"{role}.json"
        serve.start(proxy_location="Disabled")
        if app in serve.status().applications:
            serve.delete(app)
        write_pointer(pointer, policy)
        target = serve.RunTarget(
            target=_application(role, engine, pointer, samples_per_question, serving),
            name=app,
            route_prefix=None,
        )
        (handle,) = serve.run_many(
            [target],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        return cls(role, policy, engine, app, pointer, handle)

    def wait_until_ready(self) -> None:
        """Wait until an engine is ready. Raises the reason for which it cannot start, and
        ResourceError after `start_timeout_s`."""
        limit_s = self.engine.start_timeout_s
        with waiting(f"the {self.role} engine", self._missing, limit_s) as wait:
            while (status := serve.status().applications[self.app]).status != "RUNNING":
                messages = [status.message, *(d.message for d in status.deployments.values())]
                text = "\n".join(messages)
                # A running server whose lost engine is being replaced is UNHEALTHY for a while.
                if status.status == "DEPLOY_FAILED" or ENGINE_FAILED in text:
                    self.stop()
                    raise self._start_error(text)
                if wait.over:
                    error = self._late(wait)
                    self.stop()
                    raise error
                time.sleep(_POLL_SECONDS)
            if self._facts is None:
                self._facts = self.handle.facts.remote().result(timeout_s=_FACTS_TIMEOUT_SECONDS)

    def load(self, policy: Policy) -> None:
        """Load new weights into every running engine; later replicas read the pointer. Raises the
        SirtError of an engine that refuses them, which leaves everything as it was."""
        write_pointer(self._pointer, policy)
        try:
            with waiting(f"the {self.role} engines to load the weights of {policy.version}"):
                versions = self._broadcast_load(policy)
        except RayTaskError as error:
            write_pointer(self._pointer, self.policy)
            if isinstance(error.cause, SirtError):
                raise error.cause from None
            raise
        if any(version != policy.version for version in versions):
            raise StageError(
                f"the {self.role} engines did not load the weights of '{policy.version}' from"
                f" {policy.path}: they serve {', '.join(map(str, versions))}"
            )
        self.policy = policy

    def _broadcast_load(self, policy: Policy) -> list[str]:
        """Return each running replica's version afterwards. A replica that dies meanwhile fails the
        broadcast until Serve has noticed; the one that replaces it reads the pointer."""
        deadline = time.monotonic() + _DEATH_NOTICE_SECONDS
        while True:
            try:
                response = self.handle.broadcast("load", policy)
                return response.results(timeout_s=_LOAD_TIMEOUT_SECONDS)
            except RayError as error:
                if isinstance(error, RayTaskError) or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)

    def loads(self, timeout_s: float) -> dict[str, ReplicaLoad]:
        """Return how busy each running replica is, by its name."""
        return dict(self.handle.broadcast("load_now").results(timeout_s=timeout_s))

    def replicas_wanted(self) -> int:
        """Return how many replicas Serve's target is: those that run, and those that start."""
        status = serve.status().applications.get(self.app)
        states = [] if status is None else [d.replica_states for d in status.deployments.values()]
        return sum(n for each in states for state, n in each.items() if state not in _ENDING)

    def stop(self) -> None:
        """Delete the application."""
        if self.app in serve.status().applications:
            with waiting(f"the end of the {self.role} engine"):
                serve.delete(self.app)

    @property
    def version(self) -> str:
        """The version of the weights that are served."""
        return self.policy.version

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self.facts.max_model_len

    @property
    def gpus_per_replica(self) -> int:
        """GPUs that one replica holds."""
        return self.engine.tensor_parallel_size if on_gpu(self.engine) else 0

    @property
    def facts(self) -> ReplicaFacts:
        """What one replica reported when the server became ready."""
        if self._facts is None:
            raise StageError(f"the {self.role} engine is not ready: call wait_until_ready first")
        return self._facts

    def _missing(self) -> str:
        if has_pending():
            return describe_pending(bundles(self.engine, on_gpu(self.engine)))
        return "it is placed and loads, which takes minutes for a large model"

    def _late(self, wait: Wait) -> Exception:
        return ResourceError(
            f"gave up {wait.text}. Free resources for it or add nodes, or raise the engine's"
            " start_timeout_s; the same command continues"
        )

    def _start_error(self, text: str) -> Exception:
        what = f"the {self.role} engine could not be started with {self.policy.path}"
        lines = [line for line in text.splitlines() if line.strip()]
        for line in reversed(lines):
            if ENGINE_FAILED in line:
                encoded = line.split(ENGINE_FAILED, 1)[1]
                reason, _ = json.JSONDecoder().raw_decode(encoded)
                return _start_failure(what, reason)
        return StageError(f"{what}: {' '.join(lines[-3:]) or 'Serve gave no reason'}")


def _start_failure(what: str, reason: str) -> SirtError:
    """Return the error with the engine's own reason, and what to do about it."""
    if _MISSING.search(reason):
        return ResourceError(
            f"{what}: {reason}. Install what is missing on every node: sirt-ray[gpu] where there"
            " are GPUs, sirt-ray[cpu] where there are none"
        )
    if _MEMORY.search(reason):
        return ResourceError(
            f"{what}: {reason.rstrip('.')}. Lower this engine's kv_cache_gib, max_model_len or"
            " max_num_seqs under resources, raise tensor_parallel_size, or end what else uses the"
            " memory; the same command continues"
        )
    return ModelError(
        f"{what}: {reason.rstrip('.')}. Choose a model that vLLM can serve, or fix what it names"
    )


def _application(
    role: str,
    engine: EngineConfig,
    pointer: Path,
    samples_per_question: int,
    serving: Engine | None,
) -> serve.Application:
    target = target_calls(engine, samples_per_question)
    scaling = replicas(engine, engine.min_replicas, target)
    serving = serving or VllmEngine(role, llm_settings(engine))
    return deployment(f"{role}-engine", Replica, engine, scaling).bind(
        role, object_store.to_uri(pointer), serving, engine.request_timeout_s
    )


# How a replica with an engine is deployed: its resources, its health, its number


def deployment(
    name: str, replica: Any, engine: EngineConfig, scaling: dict[str, Any]
) -> serve.Deployment:
    """Return `replica` as a deployment with the engine's resources; `scaling` as `replicas` returns
    it."""
    gpu = on_gpu(engine)
    group = bundles(engine, gpu)
    labels = {"placement_group_bundle_label_selector": [engine.labels] * len(group)}
    return serve.deployment(
        name=name,
        max_ongoing_requests=max_calls(engine),
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=5.0,
        health_check_period_s=10.0,
        health_check_timeout_s=60.0,
        # A line for every call would show nothing and cost CPU time.
        logging_config={"enable_access_log": False},
        placement_group_bundles=group,
        placement_group_strategy="PACK",
        ray_actor_options={
            "num_cpus": engine.num_cpus,
            "runtime_env": {"env_vars": environment(engine, gpu)},
        },
        **(labels if engine.labels else {}),
        **scaling,
    )(replica)


def replicas(engine: EngineConfig, min_replicas: int, target: int) -> dict[str, Any]:
    """Return Serve's options for `min_replicas` up to the engine's maximum, scaled by ongoing
    requests; `target` of them are enough for one replica."""
    if min_replicas == engine.max_replicas:
        return {"num_replicas": engine.max_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": min_replicas,
            "initial_replicas": max(1, min_replicas),
            "max_replicas": engine.max_replicas,
            "target_ongoing_requests": target,
            "upscale_delay_s": engine.upscale_delay_s,
            "downscale_delay_s": engine.downscale_delay_s,
            "downscale_to_zero_delay_s": engine.downscale_delay_s,
        }
    }


def llm_settings(engine: EngineConfig, **more_kwargs: Any) -> dict[str, Any]:
    """Return the arguments of Ray's `LLMConfig`, without the model; `more_kwargs` are vLLM's."""
    gpu = on_gpu(engine)
    return {
        "engine_kwargs": engine_kwargs(engine, gpu) | more_kwargs,
        "accelerator_config": {"kind": "gpu" if gpu else "cpu"},
        "placement_group_config": {"bundles": bundles(engine, gpu)},
        "log_engine_metrics": False,
        "runtime_env": {"env_vars": environment(engine, gpu)},
    }
