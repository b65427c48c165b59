"""A cluster as a list of nodes, from a description (`--cluster 8x80GB`) or from a live cluster."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sirt_ray.errors import ConfigError
from sirt_ray.planning import gpus
from sirt_ray.planning.gpus import Gpu

GRAMMAR = (
    "[NODESx]GPUSxMEMORY or [NODESx]GPUSxKIND, as in 4x48GB, 8x80GB, 2x8x80GB (2 nodes of 8),"
    " 8xH100; [NODESx]NCPU without GPUs, as in 16CPU"
)
_DESCRIBED = re.compile(r"(?:(?P<first>\d+)x)?(?:(?P<second>\d+)x)?(?P<kind>[0-9A-Za-z. _-]+)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?GB?", re.IGNORECASE)
_CPUS = re.compile(r"(\d+) ?CPUS?", re.IGNORECASE)
_UNLIMITED = math.inf
"""CPUs of a node that is described by its GPUs only."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a cluster."""

    resources: Mapping[str, float]
    """Ray's resources: CPU, GPU, custom resources."""
    labels: Mapping[str, str] = field(default_factory=dict)
    gpu: Gpu | None = None
    """The kind of its GPUs; None if it has none or the kind is not known."""

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return int(self.resources.get("GPU", 0))


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes that a job is planned on."""

    name: str
    """The description, or the address of a live cluster."""
    nodes: Sequence[Node]
    assumed: Sequence[str] = ()
    """Assumptions about what the description leaves open."""
    described: bool = True
    """Whether it comes from a description: its nodes then have the custom resources and labels that
    the job requires."""

    @property
    def gpus(self) -> int:
        """Number of GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def gpu(self) -> Gpu | None:
        """The smallest kind of GPU in the cluster, since any worker may be placed on it."""
        kinds = [node.gpu for node in self.nodes if node.gpus and node.gpu is not None]
        return min(kinds, key=lambda gpu: (gpu.memory_gb, gpu.bandwidth), default=None)

    @property
    def resources(self) -> dict[str, float]:
        """Sum of all nodes' resources."""
        total: dict[str, float] = {}
        for node in self.nodes:
            for name, amount in node.resources.items():
                total[name] = total.get(name, 0.0) + amount
        return total


def described(text: str) -> Cluster:
    """Parse a description of a cluster, see `GRAMMAR`. Raises ConfigError if it is not one."""
    found = _DESCRIBED.fullmatch(text.strip())
    if found is None:
        raise _invalid(text)
    counts = [int(n) for n in found.group("first", "second") if n is not None]
    kind = found["kind"]
    if 0 in counts:
        raise _invalid(text)
    if (cpus := _CPUS.fullmatch(kind)) is not None and len(counts) < 2:
        number = counts[0] if counts else 1
        return Cluster(text, [Node({"CPU": float(cpus[1])})] * number)
    if not counts:
        raise _invalid(text)
    number, each = counts if len(counts) == 2 else (1, counts[0])
    gpu, assumed = _gpu(text, kind)
    node = Node({"CPU": _UNLIMITED, "GPU": float(each)}, gpu=gpu)
    assumed += [
        "the nodes have as many CPUs, as much host memory, and the custom resources and labels that"
        " the job requires"
    ]
    return Cluster(text, [node] * number, assumed)


def of_size(gpu: Gpu, nodes: int, each: int) -> Cluster:
    """Return a cluster of `nodes` nodes with `each` GPUs of a kind."""
    name = f"{nodes}x{each}x{gpu.memory_gb:g}GB" if nodes > 1 else f"{each}x{gpu.memory_gb:g}GB"
    return Cluster(name, [Node({"CPU": _UNLIMITED, "GPU": float(each)}, gpu=gpu)] * nodes)


def _gpu(text: str, kind: str) -> tuple[Gpu, list[str]]:
    """Return the GPU of a description, by its kind or its memory, and what is assumed of it."""
    memory = _MEMORY.fullmatch(kind)
    if memory is None:
        gpu = gpus.by_name(kind)
        if gpu is None:
            known = ", ".join(gpu.name for gpu in gpus.GPUS)
            raise ConfigError(
                f"--cluster {text}: {kind!r} is not a known kind of GPU. Known are {known};"
                " or give the GPU's memory instead, as in 8x80GB"
            )
        return gpu, []
    size = float(memory[1])
    similar = gpus.slowest_of(size)
    if size <= 0:
        raise _invalid(text)
    if similar is None:
        return Gpu(f"{size:g}GB", size, 0.0, 0.0), [
            f"no GPU of {size:g} GB is known, so times cannot be estimated: give its kind"
        ]
    return replace(similar, name=f"{size:g}GB"), [
        f"GPUs of {size:g} GB are as fast as the slowest known one of that size, {similar.name}"
        f" ({similar.peak_flops / 1e12:g} TFLOP/s in bfloat16,"
        f" {similar.bandwidth / gpus.GB:g} GB/s)"
    ]


def _invalid(text: str) -> ConfigError:
    return ConfigError(f"--cluster {text}: this is not a description of a cluster. Give {GRAMMAR}")
