"""The mistakes of `tests/helpers/mistakes.py` that show in a training, made in this process.

Two faults are simulated: a full GPU, by torch's error from the optimizer's step; a disk that fills
up during a training, by the error of safetensors.
"""

import contextlib
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from sirt_ray import exit_codes
from sirt_ray.cli.main import main
from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import TuneConfig
from sirt_ray.errors import SirtError
from sirt_ray.on_ray.training import trainer
from sirt_ray.quickstart import assets
from sirt_ray.training.tasks import Source, TuneTask
from sirt_ray.training.workdir import WorkDir
from tests.helpers import tiny
from tests.helpers.workspace import Workspace, makes


def refine_standalone(workspace: Workspace, *settings: str) -> int:
    """Run `sirt train dpo` on pairs in the token ids of the tiny student."""
    pairs = tiny.write_pairs(workspace.folder / "pairs", range(4)) / "pairs.parquet"
    overrides = [part for setting in settings for part in ("--set", setting)]
    out = ["--data", str(pairs), "--out", str(workspace.folder / "out")]
    return main(["train", "dpo", *out, *overrides])


@makes("pairs of a student with another tokenizer")
def _(workspace: Workspace) -> int:
    return refine_standalone(workspace, f"model={assets.resolve('quickstart:student')}")


def fill_the_gpu(workspace: Workspace) -> Path:
    """Let the first optimizer step run out of memory, and return a student."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    workspace.patch.setattr(torch.optim.AdamW, "step", full)
    return tiny.save_student(workspace.folder / "model")


def tune_as_a_worker(workspace: Workspace, student: Path) -> int:
    """Train one step as a worker of Ray Train, in this process; then the driver reads its error."""
    task = TuneTask(
        workspace.folder / "out",
        Source(str(student)),
        tiny.write_demonstrations(workspace.folder / "shown", range(4)),
        TuneConfig(max_steps=1, validation_fraction=0.0),
        TrainerResources(),
        seed=0,
    )
    workspace.patch.setattr(trainer, "_device", lambda resources: torch.device("cpu"))
    work = WorkDir(task.out)
    attempt = work.acquire(task.resources)
    with contextlib.suppress(SirtError):
        trainer._work(task, attempt)
    assert not list(work.path.rglob("*.partial"))
    error = trainer._worker_error(work)
    assert error is not None

    def fail() -> int:
        raise error

    return exit_codes.run_command(fail, False, "stopped")


@makes("too little memory for the training")
def _(workspace: Workspace) -> int:
    return tune_as_a_worker(workspace, fill_the_gpu(workspace))


@makes("a disk that gets full in a training")
def _(workspace: Workspace) -> int:
    def full(tensors: object, path: Path) -> None:
        Path(path).write_text("the beginning")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    workspace.patch.setattr(safetensors.torch, "save_file", full)
    return tune_as_a_worker(workspace, tiny.save_student(workspace.folder / "model"))


@makes("too little memory for a training in one process")
def _(workspace: Workspace) -> int:
    return refine_standalone(workspace, f"model={fill_the_gpu(workspace)}")


@makes("a package of an extra that is missing")
def _(workspace: Workspace) -> int:
    student = tiny.save_student(workspace.folder / "model")
    return refine_standalone(workspace, f"model={student}", "refine.lora.quantize=nf4")
