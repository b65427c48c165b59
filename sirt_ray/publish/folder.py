"""A run's student -> a folder for others: weights, tokenizer, card, the job, and the data that it
was trained on. The folder is written completely or not at all.

The data files are the run's own, whose columns TRL, LLaMA-Factory and `datasets` know: `prompt` and
`completion`; `prompt`, `chosen` and `rejected`. With them is a `dataset_info.json` as LLaMA-Factory
reads it (its `data/README.md`, the alpaca format).
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from sirt_ray import user_code
from sirt_ray.artifacts.store import RECORD
from sirt_ray.driver.checks import check_model
from sirt_ray.errors import DataError, ModelError, StageError
from sirt_ray.publish import adapters, card
from sirt_ray.publish.students import Student
from sirt_ray.report.records import RunRecord
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import write_json
from sirt_ray.storage.writing import write
from sirt_ray.training.checkpoint import ADAPTER
from sirt_ray.training.workdir import RESULT

_RUN_FILES = {RECORD, RESULT, "metrics.jsonl", ADAPTER}
"""Files of a student's folder that are not part of the model."""
_WHOLE_MODEL = ("config.json", "*.safetensors", "*.safetensors.index.json")
JOB = "job.yaml"
DATA = "data"


def export_student(student: Student, out: Path, merge: bool, with_data: bool, licence: str) -> None:
    """Write `out`: the whole model, or without `merge` the adapter if the student is one.

    Raises DataError if `out` is not empty, ModelError for an adapter on weights that only the run
    has.
    """

    def fill(folder: Path) -> None:
        is_adapter = (student.folder / ADAPTER).is_dir() and not merge
        rank = _copy_adapter(student, folder) if is_adapter else _copy_model(student, folder)
        write(folder / JOB, card.public_job(student.run.job))
        user_code.copy_into_run(student.run.job.code, folder)
        text = card.model_card(student, rank=rank, licence=licence, with_data=with_data)
        write(folder / "README.md", text)
        if with_data:
            write_data(student.run, folder / DATA)

    _whole_or_nothing(out, fill)


def _copy_model(student: Student, folder: Path) -> None:
    for file in _files(student.folder):
        shutil.copyfile(file, folder / file.name)
    check_model(str(student.folder), str(folder))


def _copy_adapter(student: Student, folder: Path) -> int:
    """Copy the adapter, and return its rank."""
    if not student.adapters:
        start = student.lineage[-2].parent.name
        raise ModelError(
            f"{student.version} is an adapter on the weights of {start}, in which all weights were"
            " trained: only the run has those. Give --merge for the whole model"
        )
    weights = {file for pattern in _WHOLE_MODEL for file in student.folder.glob(pattern)}
    for file in _files(student.folder):
        if file not in weights:
            shutil.copyfile(file, folder / file.name)
    return adapters.combine(student.adapters, folder)["r"]


def _files(folder: Path) -> list[Path]:
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name not in _RUN_FILES and not file.name.startswith(".")
    ]
    _refuse_links(files)
    return files


def _refuse_links(files: Iterable[Path]) -> None:
    """Raise DataError if one of a run's files is a link: what it leads to would be published."""
    links = [f"{file} to {file.readlink()}" for file in files if file.is_symlink()]
    if links:
        raise DataError(
            f"the run contains symbolic links, which sirt-ray never makes: {'; '.join(links)}."
            " What they lead to is not published. Remove them, or replace them by files"
        )


def _whole_or_nothing(out: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder next to `out`, and rename it when it is complete."""
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} exists already and is not empty; nothing is overwritten. Name a new folder, or"
            " move this one away"
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        fill(partial)
        partial.rename(out)
    except OSError as error:
        raise StageError(
            f"{out} cannot be written: {error}. Give a folder on a writable disk with enough free"
            " space"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


INFO = "dataset_info.json"
DEMONSTRATIONS = "demonstrations"


def write_data(run: RunRecord, folder: Path) -> None:
    """Write `demonstrations.parquet`, `pairs_round_01.parquet`, ...: what the run has finished.
    Raises DataError if that is nothing."""
    named = {
        DEMONSTRATIONS if name == DEMONSTRATIONS else f"pairs_{name.removesuffix('/pairs')}": (
            object_store.fetch(run.path / name, RECORD) / f"{name.rpartition('/')[2]}.parquet"
        )
        for name in run.counts
        if name == DEMONSTRATIONS or name.endswith("/pairs")
    }
    if not named:
        raise DataError(
            f"{run.path} has no demonstrations yet. Let `sirt run` finish them: they are its second"
            " stage"
        )
    _refuse_links(named.values())
    folder.mkdir(parents=True)
    info: dict[str, Any] = {}
    for name, file in named.items():
        shutil.copyfile(file, folder / f"{name}.parquet")
        info[name] = {"file_name": f"{name}.parquet", **_described(name, file)}
    write_json(folder / INFO, info)


def _described(name: str, file: Path) -> dict[str, Any]:
    if name == DEMONSTRATIONS:
        return {"columns": {"prompt": "prompt", "response": "completion"}}
    rejected = pq.read_table(file, columns=["rejected"])["rejected"]
    if pc.all(rejected.is_null()).as_py():  # pyright: ignore[reportAttributeAccessIssue]
        # The round's loss only imitates the chosen side.
        return {"columns": {"prompt": "prompt", "response": "chosen"}}
    return {
        "ranking": True,
        "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    }
