"""Training in this process, without Ray or DeepSpeed, on the CPU or one GPU.

The same tasks, settings and files as in a run (`sirt run`), each step an artifact of the folder
`out`: called again, what is finished is reused and what was killed goes on at its last checkpoint.

    out/data/        rows that others have written, encoded; not for files of a run
    out/reference/   dpo: the log-probabilities of the pairs before the training (not for `rft`)
    out/student/     the trained model
"""

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from sirt_ray.artifacts.locks import locked
from sirt_ray.artifacts.store import Artifact, Store
from sirt_ray.config.base import Section
from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import RefineConfig, TrainingConfig, TuneConfig
from sirt_ray.core import fingerprints
from sirt_ray.errors import ConfigError, DataError, ResourceError, StageError
from sirt_ray.storage.hashing import content_key, model_key
from sirt_ray.training import external_data
from sirt_ray.training.model_errors import check_quantization
from sirt_ray.training.tasks import ReferenceTask, RefineTask, Source, Task, TuneTask
from sirt_ray.training.workdir import WorkDir, last_line

_HEEDED = {
    "gpus_per_worker",
    "max_tokens_per_micro_batch",
    "gradient_checkpointing",
    "checkpoint_every_steps",
}
"""The resources that mean something in one process."""

_POLL_SECONDS = 1.0
_SHOWN = ("loss", "validation_loss", "accuracy")

Print = Callable[[str], None]


class Training(Section):
    model: str
    """Folder or hub name."""
    revision: str | None = None
    data: str
    """A file, `.jsonl` or `.parquet`, or a folder of Parquet files: what a run has stored, or rows
    in the columns of `given.py`."""
    out: str
    seed: NonNegativeInt = 0
    resources: TrainerResources = TrainerResources()
    """As `resources.trainer` in a job file."""

    @property
    def source(self) -> Source:
        folder = Path(self.model)
        return Source(str(folder.resolve()) if folder.exists() else self.model, self.revision)


class Sft(Training):
    tune: TuneConfig = TuneConfig()
    """As in a job file."""


class Dpo(Training):
    refine: RefineConfig = RefineConfig()
    """As in a job file; what is sampled and paired there is given here."""


def sft(asked: Sft, say: Print, redo: bool = False) -> Artifact:
    """Instruction-tune on demonstrations, or what is left of it. Returns the student."""
    device = _checked(asked, asked.tune)
    with locked(Path(asked.out)):
        store = Store(Path(asked.out), redo=redo)
        data, inputs = _data(store, asked, "sft")

        def build(out: Path) -> Mapping[str, Any]:
            task = TuneTask(
                out.resolve(), asked.source, data, asked.tune, asked.resources, asked.seed
            )
            return _carry_out(task, device, "sft", say)

        return store.once(
            "student",
            {**inputs, "tune": fingerprints.training_settings(asked.tune), "seed": asked.seed},
            build,
        )


def dpo(asked: Dpo, say: Print, redo: bool = False) -> Artifact:
    """Refine on preference pairs, or what is left of it: first the log-probabilities of the model
    as it is, then the training. Returns the student."""
    config, resources = asked.refine, asked.resources
    device = _checked(asked, config)
    with locked(Path(asked.out)):
        store = Store(Path(asked.out), redo=redo)
        data, inputs = _data(store, asked, "dpo")

        def score(out: Path) -> Mapping[str, Any]:
            task = ReferenceTask(out.resolve(), asked.source, data, config, resources)
            return _carry_out(task, device, "reference", say)

        reference = None
        if config.needs_reference:
            reference = store.once("reference", {**inputs, **fingerprints.scored(config)}, score)

        def refine(out: Path) -> Mapping[str, Any]:
            scored = None if reference is None else reference.path.resolve()
            task = RefineTask(
                out.resolve(), asked.source, data, scored, config, resources, asked.seed
            )
            return _carry_out(task, device, "dpo", say)

        if reference is not None:
            inputs["reference"] = reference
        inputs |= {
            "refine": fingerprints.trained(config),
            "seed": asked.seed,
        }
        return store.once("student", inputs, refine)


def _checked(asked: Training, config: TrainingConfig) -> Any:
    """The device. Raises what can be known to be wrong before anything is started."""
    import torch

    resources = asked.resources
    useless = [
        name
        for name in sorted(resources.model_fields_set - _HEEDED)
        if getattr(resources, name) != type(resources).model_fields[name].default
    ]
    if useless:
        raise ConfigError(
            f"resources.{', resources.'.join(useless)}: set, but of no use in one process. Take it"
            " away, or let `sirt run` train on several workers"
        )
    if not Path(asked.data).exists():
        raise DataError(f"data: there is no file or folder {asked.data}. Check the path")
    found = torch.cuda.is_available()
    if resources.gpus_per_worker and not found:
        raise ResourceError(
            f"resources.gpus_per_worker is {resources.gpus_per_worker:g}, but torch finds no GPU"
            " here. Set it to 0 to train on the CPU"
        )
    device = torch.device("cuda" if found and resources.gpus_per_worker != 0 else "cpu")
    if config.quantizes:
        check_quantization(device.type == "cuda")
    return device


def _data(
    store: Store, asked: Training, kind: external_data.Kind
) -> tuple[Path, dict[str, object]]:
    """The files to train on, and what model and data are."""
    from sirt_ray.training.model import load_tokenizer

    path = Path(asked.data).resolve()
    model = model_key(asked.source.name, asked.revision)
    inputs: dict[str, object] = {"model": model, "data": content_key(path)}
    if external_data.is_from_run(path, kind):
        if kind == "dpo":
            external_data.check_ids(path, load_tokenizer(asked.source))
        return path, inputs
    made = store.once(
        "data",
        inputs,
        lambda out: external_data.encode(path, kind, load_tokenizer(asked.source), out),
    )
    return made.path.resolve(), inputs


def _carry_out(task: Task, device: Any, name: str, say: Print) -> Mapping[str, Any]:
    """The task from where it is to its end, unless an earlier call has been there already."""
    import torch

    from sirt_ray.training.run import run

    work = WorkDir(task.out)
    result = work.result()
    if result is None:
        attempt = work.acquire(task.resources)
        with _told(work, name, say):
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
def _told(work: WorkDir, name: str, say: Print) -> Generator[None]:
    """Say how far it is, by the lines that the trainer writes, while the block runs."""
    over = threading.Event()

    def tell() -> None:
        told = None
        while not over.wait(_POLL_SECONDS):
            line = last_line(work.metrics)
            if line is not None and line["step"] != told:
                told = line["step"]
                shown = [f"{key} {line[key]:.4g}" for key in _SHOWN if key in line]
                speed = f"{line['tokens_per_second']:,.0f} tokens/s"
                say("  ".join([f"{name}: step {told}/{line['total_steps']}", *shown, speed]))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
