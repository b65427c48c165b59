"""Two processes with gloo that train one layout after the other: starting them costs more than
all the trainings. Ray Train would start new ones for each."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from sirt_ray.training.run import run
from sirt_ray.training.tasks import Task


def train(tasks: Sequence[Task], meeting: Path, num_workers: int = 2) -> None:
    """Carry out the tasks, in order, on so many workers; `meeting` is a file that does not exist.

    Raises what a worker raised.
    """
    torch.multiprocessing.spawn(_worker, (tasks, str(meeting), num_workers), num_workers)


def _worker(rank: int, tasks: Sequence[Task], meeting: str, num_workers: int) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(num_workers)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_workers
    )
    for task in tasks:
        run(task, torch.device("cpu"))
    torch.distributed.destroy_process_group()
