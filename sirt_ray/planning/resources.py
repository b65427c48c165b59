"""What the parts of a job need of a cluster, and who finds a place on which node.

The run asks Ray for these bundles and `sirt plan` seats them: neither knows another rule.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sirt_ray.config.resources import EngineConfig, ResourcesConfig, TrainerResources
from sirt_ray.planning.clusters import Node

Resources = Mapping[str, float]

DATA_CPUS = 1
"""What Ray Data's tasks of a run need beside engines and trainers."""


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """Bundles that must be had at the same time, each on one node."""

    who: str
    setting: str
    """What to change in the job file."""
    bundles: Sequence[Resources]
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the nodes."""
    group: int = 1
    """So many bundles after each other are best on one node: a replica's shards, all workers."""

    @property
    def total(self) -> dict[str, float]:
        return _sum(self.bundles)


def on_gpu(engine: EngineConfig, cluster_gpus: float) -> bool:
    """Whether the engine runs on GPUs, on a cluster with so many."""
    return cluster_gpus > 0 if engine.device == "auto" else engine.device == "gpu"


def gpus_per_worker(trainer: TrainerResources, cluster_gpus: float) -> float:
    if trainer.gpus_per_worker is not None:
        return trainer.gpus_per_worker
    return 1.0 if cluster_gpus else 0.0


def bundles(engine: EngineConfig, gpu: bool) -> list[dict[str, float]]:
    """The placement group of one replica: `num_cpus` once, and one GPU for each shard."""
    first = {"CPU": float(engine.num_cpus), **engine.custom_resources}
    if not gpu:
        return [first]
    shard = {"GPU": 1.0, **engine.custom_resources}
    return [first | {"GPU": 1.0}, *[dict(shard) for _ in range(engine.tensor_parallel_size - 1)]]


def of_engine(
    role: str, engine: EngineConfig, cluster_gpus: float, replicas: int | None = None
) -> ResourceRequest:
    """So many replicas; None: those that are always there, and one at least."""
    count = max(1, engine.min_replicas) if replicas is None else replicas
    group = bundles(engine, on_gpu(engine, cluster_gpus))
    who, setting = f"the {role} engine", f"resources.{role}"
    return ResourceRequest(who, setting, group * count, engine.labels, len(group))


def of_trainer(trainer: TrainerResources, cluster_gpus: float) -> ResourceRequest:
    gpus = gpus_per_worker(trainer, cluster_gpus)
    worker = {"CPU": float(trainer.cpus_per_worker), **trainer.custom_resources}
    if gpus:
        worker["GPU"] = gpus
    workers = [worker] * trainer.num_workers
    return ResourceRequest("the trainer", "resources.trainer", workers, group=len(workers))


def runs_at_once(resources: ResourcesConfig, there: Resources) -> int:
    """Runs of such resources that find room at the same time for all that each of them starts, so
    that none waits for what another holds; 1 at least."""
    gpus = there.get("GPU", 0.0)
    wanted = Counter({"CPU": float(DATA_CPUS)})
    parts = (
        of_engine("teacher", resources.teacher, gpus, resources.teacher.max_replicas),
        of_engine("student", resources.student, gpus, resources.student.max_replicas),
        of_trainer(resources.trainer, gpus),
    )
    for part in parts:
        wanted.update(part.total)
    shares = [there.get(name, 0.0) / amount for name, amount in wanted.items()]
    return max(1, int(min(min(shares), 2**31)))


def can_prestart(engine: EngineConfig, gpu: bool, free: Resources) -> bool:
    """Whether the engine begins to start before it is needed: where its replicas and, after them,
    the first training find free resources."""
    return free.get("CPU", 0) >= engine.num_cpus * engine.max_replicas + 1 and (
        not gpu or free.get("GPU", 0) > engine.tensor_parallel_size
    )


def can_colocate(student: EngineConfig, trainer: ResourceRequest, free: Resources) -> bool:
    """Whether the student's engine goes on running while the trainer works. `free`: what the
    engines that run leave."""
    return fits(trainer, free) and student.min_replicas > 0


def fits(need: ResourceRequest, free: Resources) -> bool:
    """Whether so many CPUs and GPUs are free, wherever they are."""
    wanted = need.total
    return all(free.get(name, 0.0) >= wanted.get(name, 0.0) for name in ("CPU", "GPU"))


def subtract(free: Resources, need: ResourceRequest, times: int = 1) -> dict[str, float]:
    """What is left when the need has been met."""
    used = need.total
    return {name: amount - times * used.get(name, 0.0) for name, amount in free.items()}


def assign_nodes(need: ResourceRequest, nodes: Sequence[Node]) -> list[int] | None:
    """The node's number for each bundle, each group on one node where one has the room, as Ray
    packs them. None where they do not all find a place."""
    free = [dict(node.resources) for node in nodes]
    allowed = [at for at, node in enumerate(nodes) if has_labels(node.labels, need.labels)]
    found: list[int] = []
    for start in range(0, len(need.bundles), need.group):
        group = need.bundles[start : start + need.group]
        whole = next((at for at in allowed if _fits(_sum(group), free[at])), None)
        for bundle in group:
            places = allowed if whole is None else [whole]
            place = next((at for at in places if _fits(bundle, free[at])), None)
            if place is None:
                return None
            free[place] = {n: a - bundle.get(n, 0.0) for n, a in free[place].items()}
            found.append(place)
    return found


def infeasible_reason(
    need: ResourceRequest, nodes: Sequence[Node], most: Resources | None = None
) -> str | None:
    """Why the nodes can never meet the need, and what to do; None where they can. `most`: what an
    autoscaler may bring the cluster to, whatever nodes there are now."""
    fixed = most is None
    if most is None:
        labelled = [node for node in nodes if has_labels(node.labels, need.labels)]
        for bundle in need.bundles:
            if not any(_fits(bundle, node.resources) for node in labelled):
                return _no_node(need, bundle, nodes)
        most = _sum(node.resources for node in nodes)
    total = need.total
    missing = {n: a - most.get(n, 0.0) for n, a in total.items() if a > most.get(n, 0.0)}
    if not missing:
        # Of bundles that differ, other orders than the one that is tried might find places.
        alike = all(bundle == need.bundles[0] for bundle in need.bundles)
        return (
            _no_places(need, nodes)
            if fixed and alike and assign_nodes(need, nodes) is None
            else None
        )
    return (
        f"the cluster cannot hold {need.who}: it needs {describe(total)}, the cluster has"
        f" {describe(most)}; missing: {describe(missing)}. Lower {need.setting} or add nodes"
    )


def _sum(each: Iterable[Resources]) -> dict[str, float]:
    total: dict[str, float] = {}
    for resources in each:
        for name, amount in resources.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _no_node(need: ResourceRequest, bundle: Resources, nodes: Sequence[Node]) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in need.labels.items())
    wanted = f" with the labels {labels}" if labels else ""
    return (
        f"no node of the cluster can hold {need.who}: it needs {describe(bundle)} on one"
        f" node{wanted}, and the nodes have"
        f" {'; '.join(_described(node, bool(labels)) for node in nodes)}. Lower {need.setting},"
        f"{' correct its labels,' if labels else ''} or add a node"
    )


def _no_places(need: ResourceRequest, nodes: Sequence[Node]) -> str:
    number = len(need.bundles)
    return (
        f"the cluster cannot hold {need.who}: {number} times {describe(need.bundles[0])} is not on"
        f" its nodes, although it has as much in all; they have"
        f" {'; '.join(_described(node, False) for node in nodes)}. Lower {need.setting} or add a"
        " node"
    )


def _described(node: Node, with_labels: bool) -> str:
    own = {n: v for n, v in node.labels.items() if not n.startswith("ray.io/node-id")}
    labels = f" ({', '.join(f'{name}={value}' for name, value in own.items())})"
    return describe(node.resources) + (labels if with_labels and own else "")


def has_labels(found: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(found.get(name) == value for name, value in wanted.items())


def _fits(bundle: Resources, free: Resources) -> bool:
    return all(free.get(name, 0.0) >= amount for name, amount in bundle.items())


def describe(resources: Resources) -> str:
    """Amounts and names, without what Ray counts for itself and what there is enough of."""
    internal = ("node:", "bundle_", "object_store_memory", "memory")
    shown = {
        name: amount
        for name, amount in sorted(resources.items())
        if not name.startswith(internal)
        and "_group_" not in name  # what placement groups hold
        and amount != math.inf
    }
    return ", ".join(f"{amount:g} {name}" for name, amount in shown.items()) or "nothing"
