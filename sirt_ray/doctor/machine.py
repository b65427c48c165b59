"""What a machine must have beside packages: compilers, shared memory, memory, disk, open files."""

import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from sirt_ray.doctor.findings import Finding, Level

_GIB = 2**30
_LEAST_SHARED_GIB = 2.0
_LEAST_MEMORY_GIB = 5.0
"""What the quickstart takes at its peak, all processes together."""
_LEAST_DISK_GIB = 1.0
_LITTLE_DISK_GIB = 10.0
_RAY_STOPS_AT = 0.95
"""Of the disk that Ray's temporary folder lies on: above it no object is spilled any more."""
_LEAST_OPEN_FILES = 8192
"""What Ray asks for."""
_TOOLS = {"g++": ("g++", "c++"), "ninja": ("ninja",)}
"""By what is asked for, the programs that will do."""
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_compilers(on_gpu: bool) -> list[Finding]:
    """`on_gpu`: there is a GPU, for which vLLM and DeepSpeed compile kernels, too."""
    missing = [name for name, tools in _TOOLS.items() if not any(map(_tool, tools))]
    if missing:
        for_what = "optimizer offload (resources.trainer.offload)"
        return [
            Finding(
                "compilers",
                "problem" if on_gpu else "warning",
                f"{' and '.join(missing)} missing; DeepSpeed compiles {for_what} with them"
                f"{', and vLLM its kernels' if on_gpu else ''}",
                "apt-get install g++ ninja-build, or what your system calls them",
            )
        ]
    found = [Finding("compilers", "ok", ", ".join(_TOOLS))]
    if on_gpu and _cuda_home() is None:
        found.append(
            Finding(
                "compilers",
                "warning",
                "no CUDA toolkit (nvcc): DeepSpeed cannot compile optimizer offload for GPUs",
                "Install the CUDA toolkit of torch's CUDA version and set CUDA_HOME, or leave"
                " resources.trainer.offload at none",
            )
        )
    return found


def _tool(name: str) -> str | None:
    """Also beside the running Python: a virtual environment that nobody has activated."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _cuda_home() -> str | None:
    """Where torch looks for it, without the seconds that importing torch takes."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [Path(named)] if named else [Path("/usr/local/cuda")]
    found = [str(place) for place in places if (place / "bin" / "nvcc").is_file()]
    return found[0] if found else shutil.which("nvcc")


def check_shared_memory(place: Path = Path("/dev/shm")) -> list[Finding]:
    if not place.is_dir():
        size, free = 0.0, 0.0
    else:
        usage = shutil.disk_usage(place)
        size, free = usage.total / _GIB, usage.free / _GIB
    found = f"{size:.1f} GiB in {place}, {free:.1f} free"
    if free >= _LEAST_SHARED_GIB:
        return [Finding("shared memory", "ok", found)]
    return [
        Finding(
            "shared memory",
            "warning",
            f"{found}; Ray's objects and GPU workers use it, and a disk in its place is slow",
            "Start the container with --shm-size=8g (Kubernetes: an emptyDir with medium Memory at"
            f" {place}), or remove what lies there",
        )
    ]


def check_memory() -> list[Finding]:
    limit = min([psutil.virtual_memory().total, *_limits()])
    available = min(psutil.virtual_memory().available, limit) / _GIB
    found = f"{available:.1f} of {limit / _GIB:.1f} GiB available, {os.cpu_count()} CPU cores"
    if available >= _LEAST_MEMORY_GIB:
        return [Finding("memory", "ok", found)]
    return [
        Finding(
            "memory",
            "warning",
            f"{found}; even the quickstart takes {_LEAST_MEMORY_GIB:.0f} at its peak",
            "Stop other programs, or give the machine or container more memory",
        )
    ]


def _limits() -> Iterator[int]:
    for file in map(Path, _CGROUP_LIMITS):
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            yield int(text)


def check_disk(runs: Path) -> list[Finding]:
    """Where runs, models and Ray's own files lie."""
    from huggingface_hub import constants

    ray_files = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    places = {
        f"runs ({runs})": runs,
        "the hub's cache (HF_HOME)": Path(constants.HF_HUB_CACHE),
        "Ray's files (RAY_TMPDIR)": ray_files,
    }
    return [_disk(what, _existing(place), place == ray_files) for what, place in places.items()]


def _existing(place: Path) -> Path:
    """The folder itself, or that in which it would be made."""
    place = place.expanduser().absolute()
    return next(folder for folder in (place, *place.parents) if folder.exists())


def _disk(what: str, folder: Path, is_rays: bool) -> Finding:
    usage = shutil.disk_usage(folder)
    free = usage.free / _GIB
    found = f"{free:,.1f} GiB free for {what}"
    if not os.access(folder, os.W_OK):
        cure = f"Give yourself write access to {folder}, or choose another folder"
        return Finding("disk", "problem", f"{folder}, for {what}, cannot be written to", cure)
    level: Level = "ok"
    cure = ""
    if free < _LITTLE_DISK_GIB:
        level = "problem" if free < _LEAST_DISK_GIB else "warning"
        cure = "Free some space, or choose a folder on another disk"
    if is_rays and 1 - usage.free / usage.total > _RAY_STOPS_AT:
        level = "problem"
        found += (
            f"; the disk is more than {_RAY_STOPS_AT:.0%} full, and Ray keeps nothing there then"
        )
        cure = "Free some space, or set RAY_TMPDIR to a folder on another disk"
    return Finding("disk", level, found, cure)


def check_open_files() -> list[Finding]:
    """Ray raises the soft limit to the hard one by itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= _LEAST_OPEN_FILES:
        return [Finding("open files", "ok", f"{hard:,} for each process")]
    return [
        Finding(
            "open files",
            "warning",
            f"{hard:,} for each process; Ray asks for {_LEAST_OPEN_FILES:,}",
            f"Raise the limit: `ulimit -Hn {_LEAST_OPEN_FILES}` as root, or `nofile` in"
            " /etc/security/limits.conf",
        )
    ]
