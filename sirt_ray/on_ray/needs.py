"""What the parts of a run need of the cluster, and the refusal of what it can never give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import state as cluster_state

from sirt_ray.errors import ResourceError
from sirt_ray.on_ray.placement import Resources, bundles, on_gpu
from sirt_ray.resources import EngineConfig, TrainerResources


@dataclass(frozen=True, slots=True)
class Need:
    """Bundles that must be had at the same time, each on one node."""

    who: str
    setting: str
    """What to change in the job file."""
    bundles: Sequence[Resources]
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the nodes."""


def of_engine(role: str, engine: EngineConfig) -> Need:
    """The replicas that are always there, and one at least."""
    replicas = max(1, engine.min_replicas)
    group = bundles(engine, on_gpu(engine)) * replicas
    return Need(f"the {role} engine", f"resources.{role}", group, engine.labels)


def of_trainer(trainer: TrainerResources, gpus_there: bool | None = None) -> Need:
    """`gpus_there`: whether there are any; None: whether the cluster has some."""
    gpus = gpus_per_worker(trainer, gpus_there)
    worker = {"CPU": float(trainer.cpus_per_worker), **trainer.custom_resources}
    if gpus:
        worker["GPU"] = gpus
    return Need("the trainer", "resources.trainer", [worker] * trainer.num_workers)


def gpus_per_worker(trainer: TrainerResources, gpus_there: bool | None = None) -> float:
    if trainer.gpus_per_worker is not None:
        return trainer.gpus_per_worker
    if gpus_there is None:
        gpus_there = ray.cluster_resources().get("GPU", 0) > 0
    return 1.0 if gpus_there else 0.0


def check_resources(*needs: Need) -> None:
    """Raise one ResourceError for all needs that the cluster can never meet, each for itself: parts
    that are not needed at the same time may use the same resources."""
    problems = [problem for need in needs if (problem := _problem(need)) is not None]
    if problems:
        raise ResourceError("\n".join(problems))


def _problem(need: Need) -> str | None:
    total: Resources = {}
    for bundle in need.bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    most = cluster_state.get_max_resources_from_cluster_config()
    if most is None:
        # Without an autoscaler the nodes that are there are all that there will be.
        nodes = [node for node in ray.nodes() if node["Alive"]]
        labelled = [node["Resources"] for node in nodes if _has_labels(node, need.labels)]
        for bundle in need.bundles:
            if not any(_fits(bundle, node) for node in labelled):
                return _no_node(need, bundle, nodes)
        most = ray.cluster_resources()
    missing = {n: a - most.get(n, 0.0) for n, a in total.items() if a > most.get(n, 0.0)}
    if not missing:
        return None
    return (
        f"the cluster cannot hold {need.who}: it needs {describe(total)}, the cluster has"
        f" {describe(most)}; missing: {describe(missing)}. Lower {need.setting} or add nodes"
    )


def _no_node(need: Need, bundle: Resources, nodes: list[Any]) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in need.labels.items())
    wanted = f" with the labels {labels}" if labels else ""
    return (
        f"no node of the cluster can hold {need.who}: it needs {describe(bundle)} on one"
        f" node{wanted}, and the nodes have"
        f" {'; '.join(_described(node, bool(labels)) for node in nodes)}. Lower {need.setting},"
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
