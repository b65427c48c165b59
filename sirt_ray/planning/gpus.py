"""Kinds of GPUs, with their memory and peak speed, and the GPUs that nvidia-smi lists."""

import re
import subprocess
from dataclasses import dataclass

GB = 10**9
"""Bytes. Cards are named in this unit; most have a little more memory, which plans do not use."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """Words of the device's name; also the name in a description of a cluster."""
    memory_gb: float
    peak_flops: float
    """Dense bfloat16 operations per second."""
    bandwidth: float
    """Bytes per second from the GPU's memory."""


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
"""From NVIDIA's data sheets of these products (A10G: Amazon's data of its G5 instances), with half
the operations where the sheet counts sparsity. Where a name matches two kinds, the first one is
used."""


def by_device(device_name: str) -> Gpu | None:
    """Return the kind of a device by its CUDA name, e.g. `NVIDIA A100-SXM4-80GB`. None where the
    kind is not known, as for a MIG slice."""
    if "MIG" in device_name:
        return None
    return next((gpu for gpu in GPUS if _has_words(device_name, gpu.name)), None)


def by_name(name: str) -> Gpu | None:
    """Return the kind by the name that a user or Ray (`ray.io/accelerator-type`) gives it. Case,
    spaces and hyphens do not matter: `A100-80G`, `a6000`, `RTX4090`."""
    wanted = _plain(name)
    return next((gpu for gpu in GPUS if wanted in _spellings(gpu)), None)


def slowest_of(memory_gb: float) -> Gpu | None:
    """Return the kind with this memory that has the least bandwidth, then the fewest operations."""
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


# The GPUs of a machine

_SMI_TIMEOUT_SECONDS = 60
_SMI_FIELDS = ("name", "driver_version", "memory.total", "memory.free")


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU as nvidia-smi lists it."""

    name: str
    driver: str
    total_mib: int
    """Memory in MiB; 0 where nvidia-smi does not report it."""
    free_mib: int


def query_devices() -> list[Device]:
    """Return the GPUs of this machine by running nvidia-smi. Raises OSError where it is not
    installed, subprocess.SubprocessError where it fails or does not end within a minute."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI_FIELDS)}"]
    done = subprocess.run(
        [*command, "--format=csv,noheader,nounits"],
        check=True,
        capture_output=True,
        text=True,
        timeout=_SMI_TIMEOUT_SECONDS,
    )
    return parse_devices(done.stdout)


def parse_devices(text: str) -> list[Device]:
    """Parse the output of nvidia-smi. A line with another number of fields, such as "No devices
    were found", is not a GPU."""
    devices: list[Device] = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == len(_SMI_FIELDS):
            name, driver, *memory = fields
            total, free = (int(part) if part.isdigit() else 0 for part in memory)
            devices.append(Device(name, driver, total, free))
    return devices
