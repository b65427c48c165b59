"""What an engine needs of the cluster, and what vLLM is told, as plain values."""

import math
from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import state as cluster_state

from sirt_ray.errors import ResourceError
from sirt_ray.on_ray import vllm_worker
from sirt_ray.resources import EngineConfig

_CPU_KV_CACHE_GIB = 0.25
_CPU_BLOCK_TOKENS = 32
"""In a block of the KV cache. A prompt's whole blocks are computed once for all its completions;
vLLM's 128 on CPU is more than many prompts have."""
_BUSY_SHARE = 0.7
"""Of `max_num_seqs`: above it another replica is worth starting."""
_QUEUE_SHARE = 2.0
"""Of `max_num_seqs`: sequences under way for one engine."""
_SEQUENCES_PER_CALL = 16
_CALLS_PER_ENGINE = 8
"""At least so many calls fill an engine."""

Resources = dict[str, float]


def on_gpu(engine: EngineConfig) -> bool:
    if engine.device == "auto":
        return ray.cluster_resources().get("GPU", 0) > 0
    return engine.device == "gpu"


def bundles(engine: EngineConfig, gpu: bool) -> list[Resources]:
    """The placement group of one replica: `num_cpus` once, and one GPU for each shard."""
    first: Resources = {"CPU": float(engine.num_cpus), **engine.custom_resources}
    if not gpu:
        return [first]
    shard: Resources = {"GPU": 1.0, **engine.custom_resources}
    return [first | {"GPU": 1.0}, *[dict(shard) for _ in range(engine.tensor_parallel_size - 1)]]


def engine_kwargs(engine: EngineConfig, gpu: bool) -> dict[str, Any]:
    """vLLM's arguments.

    On CPU: float32, because bfloat16 attention uses AMX instructions that end the process on some
    machines; eager, because compiling costs minutes; a fixed KV cache, because the default is a
    share of the host's memory that two engines cannot both have; prompts are never prefilled in
    chunks, because vLLM then rewinds a seeded request's random generator, which CPU generators
    cannot do: the engine would die.
    """
    kwargs: dict[str, Any] = {
        "dtype": engine.dtype,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "max_num_seqs": engine.max_num_seqs,
        # What the replica shows of its engine comes from there; vLLM's own loggers are taken away.
        "disable_log_stats": False,
        "worker_extension_cls": vllm_worker.EXTENSION,
    }
    if engine.max_model_len is not None:
        kwargs["max_model_len"] = engine.max_model_len
    kv_cache_gib = engine.kv_cache_gib
    if not gpu:
        kwargs["enforce_eager"] = True
        kwargs["enable_chunked_prefill"] = False
        kwargs["block_size"] = _CPU_BLOCK_TOKENS
        kwargs["dtype"] = "float32" if engine.dtype == "auto" else engine.dtype
        kv_cache_gib = kv_cache_gib or _CPU_KV_CACHE_GIB
    if kv_cache_gib is not None:
        kwargs["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
    return kwargs


def environment(engine: EngineConfig, gpu: bool) -> dict[str, str]:
    """The engine's environment. OMP threads are counted, not bound: bound engines on one host would
    all take the same cores, and idle threads of an uncounted pool spin."""
    env = {"VLLM_NO_USAGE_STATS": "1"}
    if not gpu:
        threads = max(1, int(engine.num_cpus) // engine.tensor_parallel_size)
        env |= {
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_ATTN_SPLIT_KV": "0",
        }
    return env


def questions_per_call(engine: EngineConfig, samples_per_question: int) -> int:
    """Questions that travel to an engine in one call. A call costs as much as decoding a few dozen
    tokens of a small model; but it ends with its slowest sequence and is lost as a whole, so an
    engine must have many under way."""
    sequences = min(_SEQUENCES_PER_CALL, engine.max_num_seqs // _CALLS_PER_ENGINE)
    return max(1, sequences // samples_per_question)


def target_calls(engine: EngineConfig, samples_per_question: int) -> int:
    """Ongoing calls of one replica above which another one is worth starting."""
    return max(1, math.floor(_full(engine, samples_per_question) * _BUSY_SHARE))


def target_requests(engine: EngineConfig) -> int:
    """Likewise of requests for single completions, as clients send them."""
    return max(1, math.floor(engine.max_num_seqs * _BUSY_SHARE))


def most_calls(engine: EngineConfig) -> int:
    """Ongoing calls that one replica takes. It turns further ones away, and Serve brings those back
    only after pauses that grow: the engine would run dry meanwhile."""
    return 2 * engine.max_num_seqs


def calls_in_flight(engine: EngineConfig, samples_per_question: int) -> int:
    """Calls to have under way for each replica: more sequences than decode together, so that the
    engine never waits, and never more calls than the replica takes."""
    queued = math.ceil(_full(engine, samples_per_question) * _QUEUE_SHARE)
    return max(1, min(queued, most_calls(engine)))


def _full(engine: EngineConfig, samples_per_question: int) -> float:
    """Calls whose sequences fill the engine."""
    sequences = questions_per_call(engine, samples_per_question) * samples_per_question
    return engine.max_num_seqs / sequences


def check_resources(engines: Mapping[str, EngineConfig]) -> None:
    """Refuse what the cluster can never give to these engines, all running at the same time."""
    if cluster_state.get_max_resources_from_cluster_config() is not None:
        return  # An autoscaling cluster: what it may still start is not known from its nodes.
    nodes = [node for node in ray.nodes() if node["Alive"]]
    total: Resources = {}
    for role, engine in engines.items():
        labelled = [node["Resources"] for node in nodes if _has_labels(node, engine.labels)]
        for bundle in bundles(engine, on_gpu(engine)):
            if not any(_fits(bundle, node) for node in labelled):
                raise ResourceError(_no_node(role, engine, bundle, nodes))
            for name, amount in bundle.items():
                total[name] = total.get(name, 0.0) + amount * max(1, engine.min_replicas)
    cluster = ray.cluster_resources()
    missing = {n: a - cluster.get(n, 0.0) for n, a in total.items() if a > cluster.get(n, 0.0)}
    if missing:
        raise ResourceError(
            f"the cluster cannot hold the engines ({', '.join(engines)}): it has"
            f" {describe(cluster)}, they need {describe(total)}; missing: {describe(missing)}."
            " Lower num_cpus, min_replicas or tensor_parallel_size under resources, or add nodes"
        )


def _no_node(role: str, engine: EngineConfig, bundle: Resources, nodes: list[Any]) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in engine.labels.items())
    wanted = f" with the labels {labels}" if labels else ""
    return (
        f"no node of the cluster can hold the {role} engine: it needs {describe(bundle)} on one"
        f" node{wanted}, and the nodes have"
        f" {'; '.join(_described(node, bool(labels)) for node in nodes)}. Lower resources.{role},"
        f"{' correct its labels,' if labels else ''} or add a node"
    )


def _described(node: Mapping[str, Any], with_labels: bool) -> str:
    own = {n: v for n, v in node["Labels"].items() if not n.startswith("ray.io/node-id")}
    labels = f" ({', '.join(f'{name}={value}' for name, value in own.items())})"
    return describe(node["Resources"]) + (labels if with_labels and own else "")


def _has_labels(node: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return all(node["Labels"].get(name) == value for name, value in labels.items())


def _fits(bundle: Resources, node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in bundle.items())


def describe(resources: Mapping[str, float]) -> str:
    """Amounts and names, without what Ray counts for itself."""
    internal = ("node:", "bundle_", "object_store_memory", "memory")
    shown = {n: a for n, a in sorted(resources.items()) if not n.startswith(internal)}
    return ", ".join(f"{amount:g} {name}" for name, amount in shown.items()) or "nothing"
