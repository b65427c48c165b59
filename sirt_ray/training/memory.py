"""The most memory that a worker has held."""

import resource
import sys

import torch


def peak_memory_gib(device: torch.device) -> float:
    """GiB: on a GPU what torch has had allocated there at most, else the resident set of this
    process at its largest, both since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
