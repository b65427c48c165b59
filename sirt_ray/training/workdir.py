"""The files of a training that is under way, in `<out>/.work`, and what the driver reads of them.

    layout.json      how many workers at which ZeRO stage write the checkpoints, in which attempt
    repeated.json    what was done again after kills
    metrics.jsonl    one line for each optimizer step (or part of a pass), written by rank 0
    checkpoints/step_000050/   everything to go on from; renamed when whole, the newest only
    weights/step_000050.safetensors   trained parameters: the best so far, and those not yet judged
    finished.json    the last step is done and the chosen weights are there; only the export is left
    export/          the student, moved to `out` when whole
    failure.json     an error that another attempt would meet again

Of a run in storage the folder is there, and each node has what it wrote and needs. A checkpoint is
in its place from the beginning, and whole where its `state.json` is; the newest line is written
apart every few seconds (`progress.json`), and all of them with each checkpoint.

No torch here: the driver needs none of it.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirt_ray.config.resources import TrainerResources
from sirt_ray.errors import ArtifactError, StageError
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import read_json, write_json

RESULT = "training.json"
"""Beside the student, written last: the counts of a training that is done."""

_LAYOUT = ("num_workers", "zero_stage", "offload")
"""Of the resources: what DeepSpeed's checkpoints are cut by."""

STATE = "state.json"
"""In a checkpoint: how far the training is."""
PROGRESS = "progress.json"
_TELL_EVERY_SECONDS = 5.0

_TAIL_BYTES = 8192
"""More than one line of metrics takes."""


@dataclass(frozen=True, slots=True)
class State:
    """How far a training is, and the best it has seen: see `choice.py`."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    seconds: float = 0.0
    validation: Mapping[str, float] | None = None
    """The metrics of the latest evaluation."""
    best: Mapping[str, float] | None = None
    """Those of the best one, which was at `best_step`."""
    best_step: int | None = None
    stale: int = 0
    """Evaluations since then."""


_NO_ROOM = ("No space left on device", "Disk quota exceeded", "inline_container")
"""In what libraries say when they cannot write on; the last is all that torch says."""


@contextmanager
def storing(path: Path) -> Generator[None]:
    """The block writes a file or a folder at `path`. Where there is no room for it, raises
    StageError, and what was written goes again: the rest of the training needs some room to end."""
    try:
        yield
    except Exception as error:
        if not any(words in str(error) for words in _NO_ROOM):
            raise
        if path.is_dir():
            # Other workers may be at it, too: they write the same checkpoint.
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        raise StageError(
            f"The training cannot write {path}: no space is left ({error}). Free some there; the"
            " same command continues from the last checkpoint"
        ) from error


class WorkDir:
    """`attempt`: the claim that a worker writes under; without one there is no other writer."""

    def __init__(self, out: Path, attempt: str | None = None) -> None:
        self.out = out
        self._attempt = attempt
        self.path = out / ".work"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.export = self.path / "export"
        self._told = 0.0

    # The whole training

    def result(self) -> dict[str, Any] | None:
        return read_json(self.out / RESULT)

    def close(self, result: Mapping[str, Any]) -> None:
        """Put the export in its place, the result last."""
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
        object_store.forget(self.out)  # The node that needs it next may be another.

    def remove(self) -> None:
        object_store.discard(self.path)

    def acquire(self, resources: TrainerResources) -> str:
        """Begin or continue with this layout, as a new attempt whose name is returned.

        Raises ArtifactError where the checkpoints are of another layout.
        """
        now = {name: getattr(resources, name) for name in _LAYOUT}
        before = read_json(self.path / "layout.json")
        if before is not None and self.latest() is not None and self.finished() is None:
            changed = [name for name in now if before[name] != now[name]]
            if changed:
                cure = " and ".join(f"{name} back to {before[name]}" for name in changed)
                raise ArtifactError(
                    f"This training is half done with resources.trainer of {_named(before)}, and"
                    f" its checkpoints cannot be continued with {_named(now)}. Set {cure}, or"
                    f" delete the folder {self.out} to begin it again"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        object_store.discard(self.path / "failure.json")
        attempt = uuid.uuid4().hex[:8]
        _write(self.path / "layout.json", {**now, "attempt": attempt})
        return attempt

    def check_owner(self) -> None:
        """Raises StageError where a later attempt has begun: workers may outlive their driver."""
        if self._attempt is None:
            return
        layout = read_json(self.path / "layout.json")
        if layout is None or layout["attempt"] != self._attempt:
            raise StageError(f"The training in {self.out} was taken over by a later start of it")

    # Checkpoints and weights

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        begun = [self.checkpoints / name for name in object_store.names(self.checkpoints)]
        paths = [path for path in begun if path.match("step_*") and path.suffix != ".partial"]
        return max((path for path in paths if object_store.is_whole(path, STATE)), default=None)

    def state(self, checkpoint: Path) -> State:
        return State(**json.loads((checkpoint / STATE).read_text()))

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:06d}"

    def weights(self, step: int) -> Path:
        return self.path / "weights" / f"step_{step:06d}.safetensors"

    def prune(self, state: State) -> None:
        """Drop what the checkpoint of `state` has made superfluous."""
        for name in object_store.names(self.checkpoints):
            if name != self.checkpoint(state.step).name:
                object_store.discard(self.checkpoints / name, STATE)
        for name in object_store.names(self.path / "weights"):
            path = self.path / "weights" / name
            if state.best_step is None or path != self.weights(state.best_step):
                object_store.discard(path)

    def finish(self, counts: Mapping[str, Any]) -> None:
        self.check_owner()
        object_store.upload(self.export)
        if self.metrics.exists():
            object_store.push(self.metrics)
        _write(self.path / "finished.json", counts)

    def finished(self) -> dict[str, Any] | None:
        """The counts of the training, once all optimizer steps are done."""
        return read_json(self.path / "finished.json")

    # Lines and errors

    def append(self, line: Mapping[str, Any]) -> None:
        in_storage = object_store.stored(self.metrics)
        if not in_storage:
            self.check_owner()
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if in_storage and time.monotonic() - self._told > _TELL_EVERY_SECONDS:
            self.check_owner()
            _write(self.path / PROGRESS, line)
            self._told = time.monotonic()

    def newest(self) -> dict[str, Any] | None:
        """The newest line, as far as this node can know it."""
        if object_store.stored(self.metrics):
            return read_json(self.path / PROGRESS)
        return last_line(self.metrics)

    def truncate(self, step: int) -> None:
        """Forget the lines after `step`: they are about to be written again."""
        self.path.mkdir(parents=True, exist_ok=True)
        object_store.pull(self.metrics)
        lines = read_lines(self.metrics)
        kept = [line for line in lines if line["step"] <= step]
        again = lines[len(kept) :]
        if again:
            before = self.repeated()
            seconds = before["seconds"] + sum(line.get("seconds", 0.0) for line in again)
            steps = before["steps"] + len(again)
            _write(self.path / "repeated.json", {"steps": steps, "seconds": round(seconds, 3)})
        partial = self.metrics.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self.metrics)

    def repeated(self) -> dict[str, float]:
        """Steps that were done, lost by a kill and done again, and the seconds that they took."""
        return read_json(self.path / "repeated.json") or {"steps": 0, "seconds": 0.0}

    def fail(self, kind: str, message: str) -> None:
        self.check_owner()
        _write(self.path / "failure.json", {"kind": kind, "message": message})

    def failure(self) -> dict[str, str] | None:
        return read_json(self.path / "failure.json")


def _named(layout: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {layout[name]}" for name in _LAYOUT)


def last_line(path: Path) -> dict[str, Any] | None:
    """The newest whole line of a JSON lines file that another process is writing."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        whole = file.read().decode(errors="ignore").rpartition("\n")[0]
    newest = whole.rpartition("\n")[2]
    return json.loads(newest) if newest else None


class Tail:
    """The whole lines of a JSON lines file that another process is writing, each of them once; all
    of them again where the file was written anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._at = -1, 0

    def new(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._inode or found.st_size < self._at:
                self._inode, self._at = found.st_ino, 0
            file.seek(self._at)
            whole, newline, _ = file.read().rpartition(b"\n")
            self._at += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines()]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON lines file; one that is still being written is not counted."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """So that all who look at the folder see it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)
    object_store.push(path)
