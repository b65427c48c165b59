"""The files of a training in progress, in `<out>/.work`, and what the driver reads of them.

    layout.json      how many workers at which ZeRO stage write the checkpoints, in which attempt
    repeated.json    what was repeated after kills, and the checkpoints that could not be read
    metrics.jsonl    one line for each optimizer step (or part of a pass), written by rank 0
    checkpoints/step_000050/   everything to resume from; renamed when complete, the newest two
    weights/step_000050.safetensors   trained parameters: the best so far, and those not evaluated
    finished.json    the last step is done, the selected weights are there; the export is left
    export/          the student, moved to `out` when complete
    failure.json     an error that another attempt would run into again

If the run is in object storage, so is this directory, and each node has what it wrote and needs. A
checkpoint is then written under its final name, and is complete if it has its `state.json`. The
newest line is written separately every few seconds (`progress.json`), and all lines with each
checkpoint.

No torch is imported here: the driver needs none.
"""

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirt_ray.config.resources import TrainerResources
from sirt_ray.errors import ArtifactError, StageError
from sirt_ray.logs import log_event
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import read_json, write_json
from sirt_ray.storage.writing import append, write

RESULT = "training.json"
"""The counts of a finished training, next to the student; written last."""

_PICKLED = {"engine", "state.pt"}
"""What version 0.1.0 wrote into its checkpoints."""

_LAYOUT = ("num_workers", "zero_stage", "offload")
"""Resources by which DeepSpeed cuts its checkpoints."""

STATE = "state.json"
"""The progress of the training, in a checkpoint."""
PROGRESS = "progress.json"
"""The newest line, if the run is in object storage."""
_PROGRESS_SECONDS = 5.0
"""Interval between two writes of `PROGRESS`."""

_TAIL_BYTES = 8192
"""Bytes that hold at least one line of metrics."""

_KEPT = 2
"""Checkpoints that are kept: the older one stands in for a newest one that cannot be read."""

_DISK_FULL = ("No space left on device", "Disk quota exceeded")
"""Parts of the libraries' errors for a full disk."""


@dataclass(frozen=True, slots=True)
class TrainingState:
    """The progress of a training, and its best evaluation so far: see fit.py."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens of the examples in those steps."""
    seconds: float = 0.0
    """Time that the steps and evaluations took."""
    validation: Mapping[str, float] | None = None
    """The metrics of the latest evaluation."""
    best: Mapping[str, float] | None = None
    """The metrics of the best evaluation."""
    best_step: int | None = None
    """The step of the best evaluation."""
    stale: int = 0
    """Evaluations since the best one."""


@contextmanager
def disk_full_as_error(path: Path) -> Generator[None]:
    """Raise StageError if the disk is full while the block writes a file or a folder at `path`.

    What was written is deleted: the rest of the training needs some space to end.
    """
    try:
        yield
    except Exception as error:
        if not any(words in str(error) for words in _DISK_FULL):
            raise
        if path.is_dir():
            # Other workers may be deleting it, too: they write the same checkpoint.
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        raise StageError(
            f"The training cannot write {path}: no space is left ({error}). Free some there; the"
            " same command continues from the last checkpoint"
        ) from error


class WorkDir:
    """The work directory of a training.

    `attempt`: the attempt that the writer belongs to, which fences off the workers of earlier ones;
    without it there is no other writer.
    """

    def __init__(self, out: Path, attempt: str | None = None) -> None:
        self.out = out
        self._attempt = attempt
        self.path = out / ".work"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.export = self.path / "export"
        self._progress_written = 0.0

    # The whole training

    def result(self) -> dict[str, Any] | None:
        """Return the counts of the training if it is finished and exported."""
        return read_json(self.out / RESULT)

    def close(self, result: Mapping[str, Any]) -> None:
        """Move the export to the student's folder, and write the result last."""
        self.check_owner()
        if not self.export.exists():
            object_store.pull(self.export)
        for made in sorted(self.export.iterdir()):
            target = self.out / made.name
            if target.is_dir():
                shutil.rmtree(target)
            made.replace(target)
            object_store.push(target)
        _write(self.out / RESULT, result)
        object_store.forget(self.out)  # Another node may need it next.

    def remove(self) -> None:
        """Delete the work directory."""
        object_store.discard(self.path)

    def acquire(self, resources: TrainerResources) -> str:
        """Start or continue the training with this layout, and return the name of the new attempt.

        Raises ArtifactError if the checkpoints have another layout.
        """
        now = {name: getattr(resources, name) for name in _LAYOUT}
        before = read_json(self.path / "layout.json")
        if before is not None and self.complete() and self.finished() is None:
            changed = [name for name in now if before[name] != now[name]]
            if changed:
                cure = " and ".join(f"{name} back to {before[name]}" for name in changed)
                raise ArtifactError(
                    f"This training is half done with resources.trainer of {_describe(before)}, and"
                    f" its checkpoints cannot be continued with {_describe(now)}. Set {cure}, or"
                    f" delete the folder {self.out} to start it again"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        object_store.discard(self.path / "failure.json")
        attempt = uuid.uuid4().hex[:8]
        _write(self.path / "layout.json", {**now, "attempt": attempt})
        return attempt

    def check_owner(self) -> None:
        """Raise StageError if a later attempt has started: workers may outlive their driver."""
        if self._attempt is None:
            return
        layout = read_json(self.path / "layout.json")
        if layout is None or layout["attempt"] != self._attempt:
            raise StageError(f"The training in {self.out} was taken over by a later start of it")

    # Checkpoints and weights

    def complete(self) -> list[Path]:
        """Return the complete checkpoints, the newest one last.

        Raises ArtifactError if the newest one was written by a version that pickled its state.
        """
        found = [self.checkpoints / name for name in object_store.names(self.checkpoints)]
        paths = [path for path in found if path.match("step_*") and path.suffix != ".partial"]
        whole = sorted(path for path in paths if object_store.is_whole(path, STATE))
        if whole and not _PICKLED.isdisjoint(object_store.names(whole[-1])):
            raise ArtifactError(
                f"The checkpoint {whole[-1]} was written by an earlier version of sirt-ray, as a"
                " pickle, which could execute code when it is loaded. Finish this training with"
                f" that version, or delete the folder {self.out} to start it again"
            )
        return whole

    def state(self, checkpoint: Path) -> TrainingState:
        """Read the progress of the training at a checkpoint. Raises ArtifactError if it cannot be
        read."""
        path = checkpoint / STATE
        try:
            return TrainingState(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from error

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:06d}"

    def weights(self, step: int) -> Path:
        return self.path / "weights" / f"step_{step:06d}.safetensors"

    def prune(self) -> None:
        """Delete what the newest checkpoints have made superfluous."""
        kept = self.complete()[-_KEPT:]
        for name in object_store.names(self.checkpoints):
            if self.checkpoints / name not in kept:
                object_store.discard(self.checkpoints / name, STATE)
        best = [self._best_weights(path) for path in kept]
        for name in object_store.names(self.path / "weights"):
            path = self.path / "weights" / name
            if path not in best:
                object_store.discard(path)

    def _best_weights(self, checkpoint: Path) -> Path | None:
        """Return the best weights up to the checkpoint, which a training resumed there may select;
        None if there are none, or if the checkpoint cannot be read."""
        with suppress(TypeError, ValueError, KeyError):
            step = json.loads(object_store.read(checkpoint / STATE) or b"")["best_step"]
            return None if step is None else self.weights(step)
        return None

    def give_up(self, checkpoint: Path, problem: str) -> None:
        """Delete a checkpoint that cannot be read, and record why."""
        self.check_owner()
        log_event(
            logging.WARNING,
            f"The checkpoint {checkpoint} is not used, the training continues at the one before it"
            f" ({problem})",
            "checkpoint_unreadable",
        )
        before = self.repeated()
        unreadable = [*before.get("unreadable", []), f"{checkpoint.name}: {problem}"]
        _write(self.path / "repeated.json", {**before, "unreadable": unreadable})
        object_store.discard(checkpoint, STATE)

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Record that all optimizer steps are done."""
        self.check_owner()
        object_store.upload(self.export)
        if self.metrics.exists():
            object_store.push(self.metrics)
        _write(self.path / "finished.json", counts)

    def finished(self) -> dict[str, Any] | None:
        """Return the counts of the training, once all optimizer steps are done."""
        return read_json(self.path / "finished.json")

    # Lines and errors

    def append(self, line: Mapping[str, Any]) -> None:
        """Append a line to the metrics. Raises StageError if a later attempt has started."""
        in_storage = object_store.stored(self.metrics)
        if not in_storage:
            self.check_owner()
        append(self.metrics, json.dumps(line) + "\n")
        if in_storage and time.monotonic() - self._progress_written > _PROGRESS_SECONDS:
            self.check_owner()
            _write(self.path / PROGRESS, line)
            self._progress_written = time.monotonic()

    def newest(self) -> dict[str, Any] | None:
        """Return the newest line that this node can see."""
        if object_store.stored(self.metrics):
            return read_json(self.path / PROGRESS)
        return last_line(self.metrics)

    def truncate(self, step: int) -> None:
        """Delete the lines after `step`, which is resumed from, and count what is repeated."""
        self.path.mkdir(parents=True, exist_ok=True)
        object_store.pull(self.metrics)
        lines = read_lines(self.metrics)
        kept = [line for line in lines if line["step"] <= step]
        lost = lines[len(kept) :]
        if lost:
            before = self.repeated()
            seconds = before["seconds"] + sum(line.get("seconds", 0.0) for line in lost)
            steps = before["steps"] + len(lost)
            again = {"steps": steps, "seconds": round(seconds, 3)}
            _write(self.path / "repeated.json", {**before, **again})
        write(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def repeated(self) -> dict[str, Any]:
        """Return the steps that a kill lost and that were repeated, the seconds they took, and the
        `unreadable` checkpoints, if there was one."""
        return read_json(self.path / "repeated.json") or {"steps": 0, "seconds": 0.0}

    def fail(self, kind: str, message: str) -> None:
        """Record an error that another attempt would run into again."""
        self.check_owner()
        _write(self.path / "failure.json", {"kind": kind, "message": message})

    def failure(self) -> dict[str, str] | None:
        """Return the recorded error."""
        return read_json(self.path / "failure.json")


def _describe(layout: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {layout[name]}" for name in _LAYOUT)


def last_line(path: Path) -> dict[str, Any] | None:
    """Return the newest complete line of a JSON lines file that another process is writing."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        whole = file.read().decode(errors="ignore").rpartition("\n")[0]
    newest = whole.rpartition("\n")[2]
    return json.loads(newest) if newest else None


class Tail:
    """The complete lines of a JSON lines file that another process is writing, each of them once;
    all of them again after the file was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = -1, 0

    def new(self) -> list[dict[str, Any]]:
        """Return the lines since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._inode or found.st_size < self._offset:
                self._inode, self._offset = found.st_ino, 0
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
            self._offset += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines()]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a JSON lines file, without one that is still being written."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file so that every process that uses the folder sees it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)
    object_store.push(path)
