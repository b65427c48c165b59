"""Training in this process, without Ray or DeepSpeed, on the CPU or one GPU.

It has the same tasks, settings and files as a run (`sirt run`); each step is an artifact of the
folder `out`: called again, a finished step is reused and a killed one resumes at its last
checkpoint.

    out/data/        the user's own rows, encoded; not for files of a run
    out/reference/   dpo: the log-probabilities of the pairs before the training (not for `rft`)
    out/student/     the trained model
"""

import os
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, NonNegativeInt

from sirt_ray.artifacts.locks import locked
from sirt_ray.artifacts.store import Artifact, Store
from sirt_ray.config.base import Section
from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import RefineConfig, TrainingConfig, TuneConfig
from sirt_ray.core import steps
from sirt_ray.errors import ConfigError, DataError, ResourceError, StageError
from sirt_ray.storage.hashing import content_key, model_key
from sirt_ray.storage.uri import checked_model
from sirt_ray.training import external_data
from sirt_ray.training.model_checks import judge, require
from sirt_ray.training.model_errors import check_quantization
from sirt_ray.training.tasks import ReferenceTask, RefineTask, Source, Task, TuneTask
from sirt_ray.training.workdir import WorkDir, last_line

_USED_RESOURCES = {
    "gpus_per_worker",
    "max_tokens_per_micro_batch",
    "gradient_checkpointing",
    "checkpoint_every_steps",
}
"""The resources that have an effect in one process."""

_POLL_SECONDS = 1.0
"""Interval at which progress is printed."""
_SHOWN = ("loss", "validation_loss", "accuracy")
"""Metrics that are printed."""

Print = Callable[[str], None]
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, with `~` for the home folder."""


class StandaloneJob(Section):
    """The settings that both kinds of training share."""

    model: Annotated[str, AfterValidator(checked_model)]
    """Folder or hub name."""
    revision: str | None = None
    """Revision of `model` on the hub."""
    data: UserPath
    """A file, or a folder of files: those of a run, or rows with the columns of `external_data.py`
    in any kind of file that `storage/row_files.py` reads."""
    out: UserPath
    """The output folder."""
    seed: NonNegativeInt = 0
    resources: TrainerResources = TrainerResources()
    """As `resources.trainer` in a job file."""

    @property
    def source(self) -> Source:
        """The model to train."""
        folder = Path(self.model)
        return Source(str(folder.resolve()) if folder.exists() else self.model, self.revision)


class SftJob(StandaloneJob):
    """Instruction tuning on demonstrations."""

    tune: TuneConfig = TuneConfig()
    """As in a job file."""


class DpoJob(StandaloneJob):
    """Refinement on preference pairs."""

    refine: RefineConfig = RefineConfig()
    """As in a job file; settings of sampling and pairing have no effect, as `data` has pairs."""


def sft(job: SftJob, print_line: Print, force: bool = False) -> Artifact:
    """Instruction-tune on demonstrations, or resume, and return the student.

    `force`: delete and rebuild artifacts that the settings have made stale.
    """
    device = _checked(job, job.tune)
    with locked(Path(job.out)):
        store = Store(Path(job.out), force=force)
        data, inputs = _data(store, job, "sft")

        def build(out: Path) -> Mapping[str, Any]:
            task = TuneTask(out.resolve(), job.source, data, job.tune, job.resources, job.seed)
            return _carry_out(task, device, "sft", print_line)

        return store.once(
            "student",
            {**inputs, "tune": steps.training_settings(job.tune), "seed": job.seed},
            build,
        )


def dpo(job: DpoJob, print_line: Print, force: bool = False) -> Artifact:
    """Refine on preference pairs, or resume, and return the student: first the log-probabilities of
    the model as it is, then the training.

    `force`: delete and rebuild artifacts that the settings have made stale.
    """
    config, resources = job.refine, job.resources
    device = _checked(job, config)
    with locked(Path(job.out)):
        store = Store(Path(job.out), force=force)
        data, inputs = _data(store, job, "dpo")

        def score(out: Path) -> Mapping[str, Any]:
            task = ReferenceTask(out.resolve(), job.source, data, config, resources)
            return _carry_out(task, device, "reference", print_line)

        reference = None
        if config.needs_reference:
            reference = store.once("reference", {**inputs, **steps.scored(config)}, score)

        def refine(out: Path) -> Mapping[str, Any]:
            scored = None if reference is None else reference.path.resolve()
            task = RefineTask(out.resolve(), job.source, data, scored, config, resources, job.seed)
            return _carry_out(task, device, "dpo", print_line)

        if reference is not None:
            inputs["reference"] = reference
        inputs |= {
            "refine": steps.trained(config),
            "seed": job.seed,
        }
        return store.once("student", inputs, refine)


def _checked(job: StandaloneJob, config: TrainingConfig) -> Any:
    """Return the device. Raises ConfigError, DataError, ModelError or ResourceError if the training
    cannot work, before anything is started."""
    import torch

    resources = job.resources
    ignored = [
        name
        for name in sorted(resources.model_fields_set - _USED_RESOURCES)
        if getattr(resources, name) != type(resources).model_fields[name].default
    ]
    if ignored:
        raise ConfigError(
            f"resources.{', resources.'.join(ignored)}: set, but without effect in one"
            " process. Remove it, or let `sirt run` train on several workers"
        )
    if not Path(job.data).exists():
        raise DataError(f"data: there is no file or folder {job.data}. Check the path")
    _check_out(Path(job.out))
    has_gpu = torch.cuda.is_available()
    if resources.gpus_per_worker and not has_gpu:
        raise ResourceError(
            f"resources.gpus_per_worker is {resources.gpus_per_worker:g}, but torch finds no GPU"
            " here. Set it to 0 to train on the CPU"
        )
    device = torch.device("cuda" if has_gpu and resources.gpus_per_worker != 0 else "cpu")
    if config.quantizes:
        check_quantization(device.type == "cuda")
    section = "tune" if isinstance(config, TuneConfig) else "refine"
    require("model", judge(job.source, "trained", {section: config}))
    return device


def _check_out(out: Path) -> None:
    """Raise ConfigError if the output folder can be neither used nor created."""
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ConfigError(f"out: {above} is a file, so {out} cannot be a folder. Name a folder")
    if not os.access(above, os.W_OK):
        raise ConfigError(
            f"out: you may not write to {above}, so the training cannot have the folder {out}. Give"
            " yourself access, or name a folder of yours"
        )


def _data(
    store: Store, job: StandaloneJob, kind: external_data.Kind
) -> tuple[Path, dict[str, object]]:
    """Return the files to train on, and the fingerprint inputs of model and data."""
    from sirt_ray.training.model import load_tokenizer

    path = Path(job.data).resolve()
    model = model_key(job.source.name, job.revision)
    inputs: dict[str, object] = {"model": model, "data": content_key(path)}
    if external_data.is_from_run(path, kind):
        if kind == "dpo":
            external_data.check_ids(path, load_tokenizer(job.source))
        return path, inputs
    encoded = store.once(
        "data",
        inputs,
        lambda out: external_data.encode(path, kind, load_tokenizer(job.source), out),
    )
    return encoded.path.resolve(), inputs


def _carry_out(task: Task, device: Any, name: str, print_line: Print) -> Mapping[str, Any]:
    """Run the task from where it is to its end, unless an earlier call has finished it."""
    import torch

    from sirt_ray.training.run import run

    work = WorkDir(task.out)
    result = work.result()
    if result is None:
        attempt = work.acquire(task.resources)
        with _progress_printed(work, name, print_line):
            try:
                result = run(task, device, attempt)
            except torch.OutOfMemoryError as error:
                raise StageError(
                    f"The GPU ran out of memory: {str(error).rstrip('.')}. Lower"
                    " resources.max_tokens_per_micro_batch, set resources.gradient_checkpointing,"
                    " or train with LoRA; only LoRA changes the result"
                ) from error
    work.remove()
    return result


@contextmanager
def _progress_printed(work: WorkDir, name: str, print_line: Print) -> Generator[None]:
    """Print the progress from the lines that the trainer writes, while the block runs."""
    stopped = threading.Event()

    def poll() -> None:
        printed = None
        while not stopped.wait(_POLL_SECONDS):
            line = last_line(work.metrics)
            if line is not None and line["step"] != printed:
                printed = line["step"]
                shown = [f"{key} {line[key]:.4g}" for key in _SHOWN if key in line]
                speed = f"{line['tokens_per_second']:,.0f} tokens/s"
                print_line(
                    "  ".join([f"{name}: step {printed}/{line['total_steps']}", *shown, speed])
                )

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
