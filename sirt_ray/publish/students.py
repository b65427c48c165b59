"""The students of a run, which of them to publish, and what they were trained from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirt_ray.artifacts.store import RECORD
from sirt_ray.errors import DataError, ModelError
from sirt_ray.report.records import RunRecord, read_run
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import read_json
from sirt_ray.training.checkpoint import ADAPTER


@dataclass(frozen=True, slots=True)
class Student:
    """A student of a run that can be published."""

    run: RunRecord
    version: str
    """`round_00`, `round_01`, ..."""

    @property
    def folder(self) -> Path:
        """The folder of a complete Hugging Face model; after LoRA, with the adapter in it."""
        return object_store.fetch(self.run.path / self.version / "student", RECORD)

    @property
    def lineage(self) -> tuple[Path, ...]:
        """The folders of the students that this one was trained from, the oldest first, and of
        itself. The first one was trained from the job's base."""
        folders = [self.folder]
        while (start := _trained_from(folders[-1])) is not None:
            folders.append(object_store.fetch(self.run.path / start, RECORD))
        return tuple(reversed(folders))

    @property
    def adapters(self) -> tuple[Path, ...]:
        """The adapters that together lead from the job's base to this student, the oldest first;
        none if one of its trainings trained all weights."""
        found = tuple(folder / ADAPTER for folder in self.lineage)
        return found if all(adapter.is_dir() for adapter in found) else ()

    def record(self, stage: str) -> dict[str, Any]:
        """Return the record of this version's `student` or `evaluation`."""
        return _record(self.run.path / self.version / stage)


def find_student(run_dir: Path, version: str | None = None) -> Student:
    """Return the student that the run kept last, or the one of `version`.

    Raises ModelError if it is not finished or was rolled back, DataError if `run_dir` is not a
    run's folder.
    """
    run = read_run(run_dir)
    trained = [
        name.removesuffix("/student")
        for name in (*run.counts, *run.missing)
        if name.endswith("/student")
    ]
    if version is not None and version not in trained:
        raise ModelError(
            f"{object_store.to_uri(run_dir)} has no student {version}. Its students are"
            f" {', '.join(trained)}"
        )
    fit = [name for name in trained if _unfit(run, name) is None]
    chosen = version or (fit[-1] if fit else trained[0])
    reason = _unfit(run, chosen)
    if reason is not None:
        instead = f", or give --stage {fit[-1]}" if fit else ""
        raise ModelError(f"{chosen} of {object_store.to_uri(run_dir)} {reason}{instead}")
    return Student(run, chosen)


def _unfit(run: RunRecord, version: str) -> str | None:
    """Return why a student cannot be published, and what to do about it; None if it can."""
    if version in run.rolled_back:
        return (
            "was rolled back: it is worse on held-out questions than the student before it, beyond"
            " their noise. Take the run's last kept student (no --stage)"
        )
    missing = [stage for stage in ("student", "evaluation") if f"{version}/{stage}" in run.missing]
    if missing:
        return (
            f"is not finished: {' and '.join(f'{version}/{stage}' for stage in missing)} is"
            " missing. Let `sirt run` finish it"
        )
    return None


def _trained_from(folder: Path) -> str | None:
    """Return the artifact whose weights this student was trained from; None: the base."""
    inputs = _record(folder)["inputs"]
    start = inputs.get("student", inputs.get("base"))
    return start["artifact"] if isinstance(start, dict) else None


def _record(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / RECORD)
    except (OSError, json.JSONDecodeError) as error:
        found, why = None, str(error)
    else:
        why = "there is none"
    if found is None:
        raise DataError(
            f"the record of {object_store.to_uri(folder)} cannot be read ({why}). Move the folder"
            " away and let `sirt run` build it again"
        )
    return found
