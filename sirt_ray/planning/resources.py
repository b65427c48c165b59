"""Resource requests of the parts of a job, and their assignment to nodes.

A run requests these bundles from Ray, and `sirt plan` assigns them to nodes: both use these rules.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sirt_ray.config.resources import EngineConfig, ResourcesConfig, TrainerResources
from sirt_ray.planning.clusters import Node

Resources = Mapping[str, float]

DATA_CPUS = 1
"""CPUs for a run's Ray Data tasks, in addition to engines and trainers."""


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """Bundles that must be allocated at the same time, each on one node."""

    name: str
    """For messages: `the student engine`."""
    setting: str
    """The section of the job file that the request comes from."""
    bundles: Sequence[Resources]
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that the nodes must have."""
    group: int = 1
    """Consecutive bundles that are placed on one node if possible: a replica's shards, all workers.
    """

    @property
    def total(self) -> dict[str, float]:
        """Sum of all bundles."""
        return _sum(self.bundles)


def on_gpu(engine: EngineConfig, cluster_gpus: float) -> bool:
    """Return whether the engine runs on GPUs, on a cluster with `cluster_gpus` GPUs."""
    return cluster_gpus > 0 if engine.device == "auto" else engine.device == "gpu"


def gpus_per_worker(trainer: TrainerResources, cluster_gpus: float) -> float:
    """Return the GPUs of a training worker; by default 1 on a cluster with GPUs."""
    if trainer.gpus_per_worker is not None:
        return trainer.gpus_per_worker
    return 1.0 if cluster_gpus else 0.0


def bundles(engine: EngineConfig, gpu: bool) -> list[dict[str, float]]:
    """Return the placement group of one replica: `num_cpus` once, and one GPU per shard."""
    first = {"CPU": float(engine.num_cpus), **engine.custom_resources}
    if not gpu:
        return [first]
    shard = {"GPU": 1.0, **engine.custom_resources}
    return [first | {"GPU": 1.0}, *[dict(shard) for _ in range(engine.tensor_parallel_size - 1)]]


def of_engine(
    role: str, engine: EngineConfig, cluster_gpus: float, replicas: int | None = None
) -> ResourceRequest:
    """Return the request of `replicas` replicas; by default of `min_replicas`, at least 1."""
    count = max(1, engine.min_replicas) if replicas is None else replicas
    group = bundles(engine, on_gpu(engine, cluster_gpus))
    name, setting = f"the {role} engine", f"resources.{role}"
    return ResourceRequest(name, setting, group * count, engine.labels, len(group))


def of_trainer(trainer: TrainerResources, cluster_gpus: float) -> ResourceRequest:
    """Return the request of all training workers."""
    gpus = gpus_per_worker(trainer, cluster_gpus)
    worker = {"CPU": float(trainer.cpus_per_worker), **trainer.custom_resources}
    if gpus:
        worker["GPU"] = gpus
    workers = [worker] * trainer.num_workers
    return ResourceRequest("the trainer", "resources.trainer", workers, group=len(workers))


def runs_at_once(resources: ResourcesConfig, available: Resources) -> int:
    """Return how many runs with these settings fit at the same time with everything that each of
    them starts, so that none waits for resources of another; at least 1."""
    gpus = available.get("GPU", 0.0)
    wanted = Counter({"CPU": float(DATA_CPUS)})
    parts = (
        of_engine("teacher", resources.teacher, gpus, resources.teacher.max_replicas),
        of_engine("student", resources.student, gpus, resources.student.max_replicas),
        of_trainer(resources.trainer, gpus),
    )
    for part in parts:
        wanted.update(part.total)
    shares = [available.get(name, 0.0) / amount for name, amount in wanted.items()]
    return max(1, int(min(min(shares), 2**31)))


def can_prestart(engine: EngineConfig, gpu: bool, free: Resources) -> bool:
    """Return whether the engine starts before it is needed: if the free resources suffice for its
    replicas and, in addition, for the first training."""
    return free.get("CPU", 0) >= engine.num_cpus * engine.max_replicas + 1 and (
        not gpu or free.get("GPU", 0) > engine.tensor_parallel_size
    )


def can_colocate(student: EngineConfig, trainer: ResourceRequest, free: Resources) -> bool:
    """Return whether the student's engine keeps running while the trainer works. `free`: the
    resources that the running engines leave."""
    return fits(trainer, free) and student.min_replicas > 0


def fits(request: ResourceRequest, free: Resources) -> bool:
    """Return whether enough CPUs and GPUs are free, on whichever nodes."""
    wanted = request.total
    return all(free.get(name, 0.0) >= wanted.get(name, 0.0) for name in ("CPU", "GPU"))


def subtract(free: Resources, request: ResourceRequest, times: int = 1) -> dict[str, float]:
    """Return what is free after the request was allocated `times` times."""
    used = request.total
    return {name: amount - times * used.get(name, 0.0) for name, amount in free.items()}


def assign_nodes(request: ResourceRequest, nodes: Sequence[Node]) -> list[int] | None:
    """Return the node number of each bundle, with each group on one node if one has enough free
    resources, as Ray's PACK strategy does. None if not all bundles can be placed."""
    free = [dict(node.resources) for node in nodes]
    allowed = [at for at, node in enumerate(nodes) if has_labels(node.labels, request.labels)]
    found: list[int] = []
    for start in range(0, len(request.bundles), request.group):
        group = request.bundles[start : start + request.group]
        whole = next((at for at in allowed if _fits(_sum(group), free[at])), None)
        for bundle in group:
            candidates = allowed if whole is None else [whole]
            node = next((at for at in candidates if _fits(bundle, free[at])), None)
            if node is None:
                return None
            free[node] = {n: a - bundle.get(n, 0.0) for n, a in free[node].items()}
            found.append(node)
    return found


def infeasible_reason(
    request: ResourceRequest, nodes: Sequence[Node], limit: Resources | None = None
) -> str | None:
    """Return why the nodes can never satisfy the request, and what to do; None if they can.
    `limit`: the maximum that an autoscaler may scale the cluster to; the nodes of now are then not
    considered."""
    if limit is None:
        labelled = [node for node in nodes if has_labels(node.labels, request.labels)]
        for bundle in request.bundles:
            if not any(_fits(bundle, node.resources) for node in labelled):
                return _no_node(request, bundle, nodes)
    total = request.total
    most = _sum(node.resources for node in nodes) if limit is None else limit
    missing = {n: a - most.get(n, 0.0) for n, a in total.items() if a > most.get(n, 0.0)}
    if missing:
        return (
            f"the cluster cannot hold {request.name}: it needs {describe(total)}, the cluster has"
            f" {describe(most)}; missing: {describe(missing)}. Lower {request.setting} or add nodes"
        )
    # If bundles differ, another order than the one that is tried might fit.
    equal = all(bundle == request.bundles[0] for bundle in request.bundles)
    if limit is None and equal and assign_nodes(request, nodes) is None:
        return _fragmented(request, nodes)
    return None


def _sum(each: Iterable[Resources]) -> dict[str, float]:
    total: dict[str, float] = {}
    for resources in each:
        for name, amount in resources.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _no_node(request: ResourceRequest, bundle: Resources, nodes: Sequence[Node]) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in request.labels.items())
    wanted = f" with the labels {labels}" if labels else ""
    return (
        f"no node of the cluster can hold {request.name}: it needs {describe(bundle)} on one"
        f" node{wanted}, and the nodes have"
        f" {'; '.join(_described(node, bool(labels)) for node in nodes)}. Lower {request.setting},"
        f"{' correct its labels,' if labels else ''} or add a node"
    )


def _fragmented(request: ResourceRequest, nodes: Sequence[Node]) -> str:
    number, bundle = len(request.bundles), describe(request.bundles[0])
    return (
        f"the cluster cannot hold {request.name}: {number} times {bundle} does not fit on its"
        " nodes, although it has as much in total; they have"
        f" {'; '.join(_described(node, False) for node in nodes)}. Lower {request.setting} or add a"
        " node"
    )


def _described(node: Node, with_labels: bool) -> str:
    shown = {n: v for n, v in node.labels.items() if not n.startswith("ray.io/node-id")}
    labels = f" ({', '.join(f'{name}={value}' for name, value in shown.items())})"
    return describe(node.resources) + (labels if with_labels and shown else "")


def has_labels(found: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Return whether a node with the labels `found` has all `wanted` ones."""
    return all(found.get(name) == value for name, value in wanted.items())


def _fits(bundle: Resources, free: Resources) -> bool:
    return all(free.get(name, 0.0) >= amount for name, amount in bundle.items())


def describe(resources: Resources) -> str:
    """Format amounts and names, without Ray's internal resources and unlimited ones."""
    internal = ("node:", "bundle_", "object_store_memory", "memory")
    shown = {
        name: amount
        for name, amount in sorted(resources.items())
        if not name.startswith(internal)
        and "_group_" not in name  # Resources of placement groups
        and amount != math.inf
    }
    return ", ".join(f"{amount:g} {name}" for name, amount in shown.items()) or "nothing"
