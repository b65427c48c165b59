"""How a replica with an engine is deployed on Ray Serve: its place, its health, its number."""

from typing import Any

from ray import serve

from sirt_ray.config.resources import EngineConfig
from sirt_ray.on_ray.engine.options import engine_kwargs, environment, most_calls
from sirt_ray.on_ray.needs import on_gpu
from sirt_ray.planning.resources import bundles


def deployment(
    name: str, replica: Any, engine: EngineConfig, scaling: dict[str, Any]
) -> serve.Deployment:
    """`replica` as a deployment with the engine's resources; `scaling` says how many there are."""
    gpu = on_gpu(engine)
    group = bundles(engine, gpu)
    labels = {"placement_group_bundle_label_selector": [engine.labels] * len(group)}
    return serve.deployment(
        name=name,
        max_ongoing_requests=most_calls(engine),
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=5.0,
        health_check_period_s=10.0,
        health_check_timeout_s=60.0,
        # A line for every call would say nothing and take its time.
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
    """From `min_replicas` to the engine's most, by requests under way; `target` of them are enough
    for one replica."""
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
    """What Ray's `LLMConfig` is made of, but for the model; `more_kwargs` are vLLM's."""
    gpu = on_gpu(engine)
    return {
        "engine_kwargs": engine_kwargs(engine, gpu) | more_kwargs,
        "accelerator_config": {"kind": "gpu" if gpu else "cpu"},
        "placement_group_config": {"bundles": bundles(engine, gpu)},
        "log_engine_metrics": False,
        "runtime_env": {"env_vars": environment(engine, gpu)},
    }
