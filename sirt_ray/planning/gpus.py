"""Kinds of GPUs: what they hold, and how fast they are at best."""

import re
from dataclasses import dataclass

GB = 10**9
"""Bytes. Cards are named by it; most hold a little more, which is left as it is."""


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    """Words of the device's name, and what a cluster is described with."""
    memory_gb: float
    peak_flops: float
    """bfloat16 operations a second, dense."""
    bandwidth: float
    """Bytes a second from its memory."""


GPUS = (
    Gpu("B200", 180, 2250e12, 8.0e12),
    Gpu("H200", 141, 989e12, 4.8e12),
    Gpu("H100 PCIe", 80, 756e12, 2.0e12),
    Gpu("H100 NVL", 94, 835e12, 3.9e12),
    Gpu("H100", 80, 989e12, 3.35e12),
    Gpu("A100 80GB", 80, 312e12, 1.935e12),
    Gpu("A100", 40, 312e12, 1.555e12),
    Gpu("L40S", 48, 362e12, 864e9),
    Gpu("RTX A6000", 48, 155e12, 768e9),
    Gpu("RTX 4090", 24, 165e12, 1008e9),
    Gpu("A10G", 24, 70e12, 600e9),
    Gpu("L4", 24, 121e12, 300e9),
)
"""From NVIDIA's data sheets of these products (A10G: Amazon's of its G5 machines), half the
operations where they give those with sparsity. Of two that a name fits, the first counts."""


def by_device(device_name: str) -> Gpu | None:
    """The kind of a device that CUDA calls so, e.g. `NVIDIA A100-SXM4-80GB`. None where it is not
    known, as of a part of a GPU."""
    if "MIG" in device_name:
        return None
    return next((gpu for gpu in GPUS if _has_words(device_name, gpu.name)), None)


def by_name(name: str) -> Gpu | None:
    """The kind that a user or Ray (`ray.io/accelerator-type`) calls so, whatever the case, spaces
    and hyphens: `A100-80G`, `a6000`, `RTX4090`."""
    wanted = _plain(name)
    return next((gpu for gpu in GPUS if wanted in _spellings(gpu)), None)


def slowest_of(memory_gb: float) -> Gpu | None:
    """Of the kinds with so much memory the one with the least bandwidth, then operations."""
    fitting = [gpu for gpu in GPUS if gpu.memory_gb == memory_gb]
    return min(fitting, key=lambda gpu: (gpu.bandwidth, gpu.peak_flops), default=None)


def _has_words(device_name: str, words: str) -> bool:
    return all(re.search(rf"\b{word}\b", device_name) for word in words.split())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("b")


def _spellings(gpu: Gpu) -> set[str]:
    full = _plain(gpu.name)
    with_memory = _plain(f"{gpu.name}{gpu.memory_gb:g}GB")
    return {full, full.removeprefix("rtx"), with_memory}
