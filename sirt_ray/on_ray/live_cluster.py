"""The cluster at an address as its nodes, with what their GPUs hold."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sirt_ray.on_ray import needs
from sirt_ray.planning import gpus
from sirt_ray.planning.clusters import Cluster, Node
from sirt_ray.planning.gpus import Gpu

_LOOK_SECONDS = 60
_TYPE_LABEL = "ray.io/accelerator-type"
_TYPE_RESOURCE = "accelerator_type:"
Device = tuple[str, int]
"""A GPU's name, and bytes of its memory."""


def read(address: str) -> Cluster:
    """The nodes that are alive on the Ray that this process is connected to. Each node with GPUs is
    asked what they are, by a task that takes none of them."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    found = [devices_of(node) for node in alive]
    cluster = from_nodes(address, alive, found)
    if needs.most() is None and not needs.may_grow():
        return cluster
    text = "nodes that the autoscaler may add are not looked at"
    return replace(cluster, assumed=[*cluster.assumed, text])


def from_nodes(
    address: str, alive: Sequence[Mapping[str, Any]], devices: Sequence[Sequence[Device]]
) -> Cluster:
    """Ray's nodes, and each one's GPUs as far as they were found."""
    nodes: list[Node] = []
    assumed: list[str] = []
    for number, (node, there) in enumerate(zip(alive, devices, strict=True), start=1):
        made = Node(node["Resources"], node["Labels"])
        if made.gpus:
            kind = _named(made) if not there else _smallest(there)
            if kind is None:
                assumed.append(f"node {number}: what its GPUs hold is not known")
            elif not there:
                assumed.append(f"node {number}: its GPUs hold what an {kind.name} does")
            made = replace(made, gpu=kind)
        nodes.append(made)
    return Cluster(f"the cluster at {address}", nodes, assumed, described=False)


def _named(node: Node) -> Gpu | None:
    """By what Ray says of the node."""
    label = node.labels.get(_TYPE_LABEL)
    names = [name for name in node.resources if name.startswith(_TYPE_RESOURCE)]
    for name in [label, *(name.removeprefix(_TYPE_RESOURCE) for name in names)]:
        if name and (kind := gpus.by_name(name)) is not None:
            return kind
    return None


def _smallest(there: Sequence[Device]) -> Gpu:
    name, size = min(there, key=lambda device: device[1])
    kind = gpus.by_device(name) or Gpu(name, 0.0, 0.0, 0.0)
    return replace(kind, memory_gb=round(size / gpus.GB, 1))


def devices_of(node: Mapping[str, Any]) -> list[Device]:
    if not node["Resources"].get("GPU"):
        return []
    task = ray.remote(_look).options(
        num_cpus=0,
        max_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
    )
    try:
        return ray.get(task.remote(), timeout=_LOOK_SECONDS)
    except RayError:  # an image without nvidia-smi, a node that has just gone: its label may do
        return []


def _look() -> list[Device]:
    asked = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    text = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    rows = [line.rpartition(",") for line in text.splitlines() if line.strip()]
    return [(name.strip(), int(mebibytes) * 2**20) for name, _, mebibytes in rows]
