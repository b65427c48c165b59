"""Requirements of a machine other than packages: compilers, memory, disk, open files."""

import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from sirt_ray.doctor.findings import Finding, Level
from sirt_ray.storage.uri import user_path

_GIB = 2**30
_MIN_SHARED_GIB = 2.0
_MIN_MEMORY_GIB = 5.0
"""Peak of the quickstart, all processes together."""
_MIN_DISK_GIB = 1.0
_LOW_DISK_GIB = 10.0
_RAY_MAX_FULL = 0.95
"""Share of the disk of Ray's temporary folder, above which Ray spills no objects."""
_MIN_OPEN_FILES = 8192
"""Recommended by Ray."""
_TOOLS = {"g++": ("g++", "c++"), "ninja": ("ninja",)}
"""Required tool -> the programs that provide it."""
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_compilers(on_gpu: bool) -> list[Finding]:
    """Check the tools that DeepSpeed compiles with and, `on_gpu`, those that kernels are compiled
    with."""
    missing = [name for name, tools in _TOOLS.items() if not any(map(_tool, tools))]
    if missing:
        offload = "optimizer offload (resources.trainer.offload)"
        return [
            Finding(
                "compilers",
                "problem" if on_gpu else "warning",
                f"{' and '.join(missing)} missing; DeepSpeed compiles {offload} with them"
                f"{', and vLLM its kernels' if on_gpu else ''}",
                "apt-get install g++ ninja-build, or the same packages of your system",
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
    """Find a program on the PATH or in the folder of the running Python, which is not on the PATH
    if the virtual environment is not activated."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _cuda_home() -> str | None:
    """Look for the CUDA toolkit as torch does, without the seconds that importing torch takes."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    folder = Path(named or "/usr/local/cuda")
    return str(folder) if (folder / "bin" / "nvcc").is_file() else shutil.which("nvcc")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> list[Finding]:
    """Check the free space of the shared memory file system; none if it does not exist."""
    if not folder.is_dir():
        size, free = 0.0, 0.0
    else:
        usage = shutil.disk_usage(folder)
        size, free = usage.total / _GIB, usage.free / _GIB
    found = f"{size:.1f} GiB in {folder}, {free:.1f} free"
    if free >= _MIN_SHARED_GIB:
        return [Finding("shared memory", "ok", found)]
    return [
        Finding(
            "shared memory",
            "warning",
            f"{found}; Ray's objects and GPU workers use it, and falling back to a disk is slow",
            "Start the container with --shm-size=8g (Kubernetes: an emptyDir with medium Memory at"
            f" {folder}), or delete files in it",
        )
    ]


def check_memory() -> list[Finding]:
    """Check the memory that the machine, or the container's limit, leaves for a run."""
    limit = min([psutil.virtual_memory().total, *_limits()])
    available = min(psutil.virtual_memory().available, limit) / _GIB
    found = f"{available:.1f} of {limit / _GIB:.1f} GiB available, {os.cpu_count()} CPU cores"
    if available >= _MIN_MEMORY_GIB:
        return [Finding("memory", "ok", found)]
    return [
        Finding(
            "memory",
            "warning",
            f"{found}; even the quickstart takes {_MIN_MEMORY_GIB:.0f} at its peak",
            "Stop other programs, or give the machine or container more memory",
        )
    ]


def _limits() -> Iterator[int]:
    """Yield the memory limits of the container (cgroup v2 or v1), in bytes."""
    for file in map(Path, _CGROUP_LIMITS):
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            yield int(text)


def check_disk(runs: Path) -> list[Finding]:
    """Check the disks of the runs, of the hub's cache and of Ray's own files."""
    from huggingface_hub import constants

    ray_files = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    folders = {
        f"runs ({runs})": runs,
        "the hub's cache (HF_HOME)": Path(constants.HF_HUB_CACHE),
        "Ray's files (RAY_TMPDIR)": ray_files,
    }
    return [_disk(use, _existing(folder), folder == ray_files) for use, folder in folders.items()]


def _existing(path: Path) -> Path:
    """Return the folder itself or, if it does not exist, the parent that it would be created in."""
    path = user_path(path).absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _disk(use: str, folder: Path, is_rays: bool) -> Finding:
    usage = shutil.disk_usage(folder)
    free = usage.free / _GIB
    found = f"{free:,.1f} GiB free for {use}"
    if not os.access(folder, os.W_OK):
        cure = f"Give yourself write access to {folder}, or choose another folder"
        return Finding("disk", "problem", f"{folder}, for {use}, cannot be written to", cure)
    level: Level = "ok"
    cure = ""
    if free < _LOW_DISK_GIB:
        level = "problem" if free < _MIN_DISK_GIB else "warning"
        cure = "Free some space, or choose a folder on another disk"
    if is_rays and 1 - usage.free / usage.total > _RAY_MAX_FULL:
        level = "problem"
        found += f"; the disk is more than {_RAY_MAX_FULL:.0%} full, so Ray cannot spill objects"
        cure = "Free some space, or set RAY_TMPDIR to a folder on another disk"
    return Finding("disk", level, found, cure)


def check_open_files() -> list[Finding]:
    """Check the hard limit of open files. Ray itself raises the soft limit to it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= _MIN_OPEN_FILES:
        return [Finding("open files", "ok", f"{hard:,} for each process")]
    return [
        Finding(
            "open files",
            "warning",
            f"{hard:,} for each process; Ray recommends {_MIN_OPEN_FILES:,}",
            f"Raise the limit: `ulimit -Hn {_MIN_OPEN_FILES}` as root, or `nofile` in"
            " /etc/security/limits.conf",
        )
    ]
