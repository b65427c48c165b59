"""A cluster as its nodes, described by hand or read from a live one."""

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
_DESCRIBED = re.compile(r"(?:(?P<first>\d+)x)?(?:(?P<second>\d+)x)?(?P<what>[0-9A-Za-z. _-]+)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?GB?", re.IGNORECASE)
_CPUS = re.compile(r"(\d+) ?CPUS?", re.IGNORECASE)
_ENOUGH = math.inf
"""CPUs of a node that is described by its GPUs alone."""


@dataclass(frozen=True, slots=True)
class Node:
    resources: Mapping[str, float]
    """As Ray has them: CPU, GPU, custom ones."""
    labels: Mapping[str, str] = field(default_factory=dict)
    gpu: Gpu | None = None
    """Of each of its GPUs; None: there is none, or it is not known."""

    @property
    def gpus(self) -> int:
        return int(self.resources.get("GPU", 0))


@dataclass(frozen=True, slots=True)
class Cluster:
    name: str
    """What it was described by."""
    nodes: Sequence[Node]
    assumed: Sequence[str] = ()
    """What the description leaves open, and what is taken for it."""
    described: bool = True
    """By hand: its nodes have the custom resources and labels that a job asks for."""

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    @property
    def gpu(self) -> Gpu | None:
        """The smallest kind that it has: what any worker may come to sit on."""
        kinds = [node.gpu for node in self.nodes if node.gpus and node.gpu is not None]
        return min(kinds, key=lambda gpu: (gpu.memory_gb, gpu.bandwidth), default=None)

    @property
    def resources(self) -> dict[str, float]:
        """Of all nodes together."""
        total: dict[str, float] = {}
        for node in self.nodes:
            for name, amount in node.resources.items():
                total[name] = total.get(name, 0.0) + amount
        return total


def described(text: str) -> Cluster:
    """The cluster of a description by hand, see `GRAMMAR`. Raises ConfigError."""
    found = _DESCRIBED.fullmatch(text.strip())
    if found is None:
        raise _unclear(text)
    counts = [int(n) for n in found.group("first", "second") if n is not None]
    what = found["what"]
    if 0 in counts:
        raise _unclear(text)
    if (cpus := _CPUS.fullmatch(what)) is not None and len(counts) < 2:
        number = counts[0] if counts else 1
        return Cluster(text, [Node({"CPU": float(cpus[1])})] * number)
    if not counts:
        raise _unclear(text)
    number, each = counts if len(counts) == 2 else (1, counts[0])
    gpu, assumed = _kind(text, what)
    node = Node({"CPU": _ENOUGH, "GPU": float(each)}, gpu=gpu)
    assumed += [
        "the nodes have as many CPUs, as much memory of their own, and the custom resources and"
        " labels that are asked for"
    ]
    return Cluster(text, [node] * number, assumed)


def of_size(gpu: Gpu, nodes: int, each: int) -> Cluster:
    """Some nodes with `each` GPUs of a kind."""
    name = f"{nodes}x{each}x{gpu.memory_gb:g}GB" if nodes > 1 else f"{each}x{gpu.memory_gb:g}GB"
    return Cluster(name, [Node({"CPU": _ENOUGH, "GPU": float(each)}, gpu=gpu)] * nodes)


def _kind(text: str, what: str) -> tuple[Gpu, list[str]]:
    memory = _MEMORY.fullmatch(what)
    if memory is None:
        gpu = gpus.by_name(what)
        if gpu is None:
            known = ", ".join(kind.name for kind in gpus.GPUS)
            raise ConfigError(
                f"--cluster {text}: {what!r} is no kind of GPU that is known. There are {known};"
                f" give the memory in its place, as in 8x80GB"
            )
        return gpu, []
    size = float(memory[1])
    like = gpus.slowest_of(size)
    if size <= 0:
        raise _unclear(text)
    if like is None:
        return Gpu(f"{size:g}GB", size, 0.0, 0.0), [
            f"no GPU of {size:g} GB is known, so that nothing is said about time: name its kind"
        ]
    return replace(like, name=f"{size:g}GB"), [
        f"GPUs of {size:g} GB are as fast as the slowest of that size that is known, {like.name}"
        f" ({like.peak_flops / 1e12:g} TFLOP/s in bfloat16, {like.bandwidth / gpus.GB:g} GB/s)"
    ]


def _unclear(text: str) -> ConfigError:
    return ConfigError(f"--cluster {text}: is no description of a cluster. Give {GRAMMAR}")
