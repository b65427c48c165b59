"""The events of a run -> calls of its trackers, in one thread that can never hold the run up.

Each tracker receives each thing once, however often the run is resumed: a `Ledger` in the run's
folder records what it has received. A tracker that raises, or does not keep up, is dropped: one
warning says why, and the run continues without it.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sirt_ray.artifacts import parquet
from sirt_ray.artifacts.store import RECORD
from sirt_ray.config.base import leaves_of
from sirt_ray.config.job import JobConfig, TrackerName
from sirt_ray.errors import ConfigError
from sirt_ray.logs import start_thread, without_secrets
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import read_json, write_json
from sirt_ray.storage.uri import masked
from sirt_ray.tracking.base import RUN, Examples, RunInfo, Tracker
from sirt_ray.tracking.mlflow import MlflowTracker
from sirt_ray.tracking.tensorboard import TensorboardTracker
from sirt_ray.tracking.wandb import WandbTracker

TRACKERS: dict[TrackerName, Callable[[RunInfo], Tracker]] = {
    "tensorboard": TensorboardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}
"""Name in job files -> tracker."""
_FOLDER = "tracking"
"""In a run's folder: the ledger of each tracker."""
_METRICS = "metrics.jsonl"
_FILES = ("config.yaml", "scores.json", "report.html")
_EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "demonstrations": ("prompt", "completion", "verdict"),
    "pairs": ("prompt", "chosen", "rejected", "rule"),
    "evaluation": ("prompt", "completion", "verdict", "reference"),
}
"""Kind of artifact -> the columns of its examples."""
_NUM_EXAMPLES = 10
_SAVE_EVERY_SECONDS = 5.0
"""While a training runs; at the end of a stage the ledger is saved at once."""
_MAX_QUEUED = 10_000
"""Events that no tracker has taken yet, after which all trackers are dropped."""
_END_SECONDS = 30.0
"""Timeout for the queued events when the run is over."""

Warn = Callable[[str, str], None]
"""(tracker, message)"""
Event = tuple[str | None, Mapping[str, Any]]
"""Name and fields of a log record."""


def check_installed(names: Sequence[TrackerName]) -> None:
    """Raise ConfigError if a tracker's package is missing."""
    missing = [
        name
        for name in names
        if find_spec("tensorboardX" if name == "tensorboard" else name) is None
    ]
    if missing:
        extras = ",".join(missing)
        raise ConfigError(
            f"tracking names {' and '.join(missing)}, which is not installed. Install it with"
            f" `pip install 'sirt-ray[{extras}]'`, or remove it from tracking"
        )


@dataclass
class Ledger:
    """What a tracker has received, in a file of the run's folder."""

    path: Path
    steps: dict[str, int] = field(default_factory=dict)
    """Training that is not finished -> its last step."""
    finished: dict[str, str] = field(default_factory=dict)
    """Artifact -> when it was finished, by its record."""
    scores: dict[str, Any] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    """See `RunInfo.ids`."""

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """Read the ledger, from object storage if the run's folder is there."""
        return cls(path, **(read_json(path) or {}))

    def save(self, share: bool = False) -> None:
        """Write the ledger; `share`: to object storage too, for who resumes the run on another
        machine."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stated = {name: vars(self)[name] for name in ("steps", "finished", "scores", "ids")}
        write_json(self.path, stated)
        if share:
            object_store.push(self.path)


class _Feed:
    """Sends one tracker what its ledger does not have yet. The tracker is opened with the first
    thing to send."""

    def __init__(
        self, run_dir: Path, ledger: Ledger, open_tracker: Callable[[Ledger], Tracker]
    ) -> None:
        self._run_dir, self._ledger, self._open = run_dir, ledger, open_tracker
        self._opened: Tracker | None = None
        self._saved = time.monotonic()

    def handle(self, event: str | None, fields: Mapping[str, Any]) -> None:
        name = fields.get("artifact", "")
        if event == "step":
            self._step(name, fields["line"])
        elif name and (event == "finished" or (event == "reused" and self._is_new(name))):
            self._artifact(name, fields["counts"])
        elif event == "rolled_back":
            version = fields["version"]
            self._tracker.log(version, {"rolled_back": 1.0}, _round(version))
        elif "scores" in fields and self._ledger.scores.get(fields["version"]) != fields["scores"]:
            self._scores(fields["version"], fields["scores"])

    def flush(self) -> None:
        """Show what was sent. What a kill loses of the ledger is sent again."""
        if self._opened is None:
            return
        self._opened.flush()
        if time.monotonic() - self._saved > _SAVE_EVERY_SECONDS:
            self._ledger.save()
            self._saved = time.monotonic()

    def close(self, failed: bool) -> None:
        if self._opened is None:
            return
        for name in _FILES:
            if (self._run_dir / name).is_file():
                self._opened.file(self._run_dir / name)
        self._opened.close(failed)
        self._ledger.save(share=True)

    @property
    def _tracker(self) -> Tracker:
        if self._opened is None:
            self._opened = self._open(self._ledger)
        return self._opened

    def _step(self, name: str, line: Mapping[str, Any]) -> None:
        step = line["step"]
        if step > self._ledger.steps.get(name, 0):
            known = {
                key: value for key, value in line.items() if key not in ("step", "total_steps")
            }
            self._tracker.log(name, dict(_figures(known)), step)
            self._ledger.steps[name] = step

    def _artifact(self, name: str, counts: Mapping[str, Any]) -> None:
        """Send its counts and examples. Of a training also the steps that were not sent as they
        happened: its last ones, and all of one that was finished before the tracker was named."""
        metrics = object_store.read(self._run_dir / name / _METRICS)
        for line in (metrics or b"").splitlines():
            self._step(name, json.loads(line))
        self._ledger.steps.pop(name, None)
        # A training has curves of the same names, and steps with the numbers of rounds.
        self._tracker.log(name, dict(_figures({"record": counts})), _round(name))
        rows = _examples(self._run_dir / name, name.rpartition("/")[2])
        if rows:
            self._tracker.examples(name, rows, _round(name))
        self._ledger.finished[name] = self._finish_time(name)
        self._ledger.save(share=True)

    def _scores(self, version: str, scores: Mapping[str, Any]) -> None:
        """Send the scores of students as a curve over the rounds, those of teacher and baseline
        under their own names."""
        figures = {
            f"{figure}/{benchmark}/{kind}": score[figure]
            for benchmark, kinds in scores.items()
            for kind, score in kinds.items()
            for figure in ("accuracy", "stderr")
        }
        scope = RUN if version.startswith("round_") else version
        self._tracker.log(scope, figures, _round(version))
        self._ledger.scores[version] = dict(scores)
        self._ledger.save(share=True)

    def _is_new(self, name: str) -> bool:
        return self._ledger.finished.get(name) != self._finish_time(name)

    def _finish_time(self, name: str) -> str:
        return (read_json(self._run_dir / name / RECORD) or {}).get("finished", "")


def _figures(value: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers among the leaves, `a/b` -> number."""
    for name, leaf in leaves_of(value, "/"):
        if isinstance(leaf, int | float):
            yield name, float(leaf)


def _round(name: str) -> int:
    """Return the number of an artifact's round, `round_02/pairs` -> 2; 0 if it has none."""
    number = name.partition("/")[0].removeprefix("round_")
    return int(number) if number.isdigit() else 0


def _examples(folder: Path, kind: str) -> Examples:
    if kind not in _EXAMPLES or not parquet.files(object_store.fetch(folder, RECORD)):
        return []
    rows: list[Mapping[str, str]] = []
    for row in parquet.rows(folder, _EXAMPLES[kind]):
        # A pair without a rejected side has None there.
        rows.append({name: "" if row[name] is None else row[name] for name in _EXAMPLES[kind]})
        if len(rows) == _NUM_EXAMPLES:
            break
    return rows


class Trackers(logging.Handler):
    """All trackers of a job, which receive events in the order of the job's list. They are closed
    by the run's last event."""

    def __init__(
        self,
        job: JobConfig,
        run_dir: Path,
        warn: Warn,
        end_seconds: float = _END_SECONDS,
        max_queued: int = _MAX_QUEUED,
    ) -> None:
        super().__init__()
        self._job, self._run_dir, self._warn = job, run_dir, warn
        self._end_seconds = end_seconds
        self._queue: queue.Queue[Event | None] = queue.Queue(max_queued)
        self._active = list(dict.fromkeys(job.tracking))
        self._feeds: dict[TrackerName, _Feed] = {}
        self._busy = ""
        """The tracker that the thread is calling."""
        self._closed = self._failed = False
        self._thread = start_thread(self._send, "trackers")

    def createLock(self) -> None:
        """Use no lock: a tracker that fails while its end is awaited could not warn."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        if self._closed or not self._active or threading.current_thread() is self._thread:
            return
        event: str | None = record.__dict__.get("event")
        fields: Mapping[str, Any] = record.__dict__.get("fields", {})
        try:
            self._queue.put_nowait((event, fields))
        except queue.Full:
            self._drop_all(f"does not keep up ({self._queue.maxsize:,} events are queued)")
            return
        if event == "stopped" or (event == "finished" and "artifact" not in fields):
            self._close(failed=event == "stopped")

    def _close(self, failed: bool) -> None:
        """Wait until everything is sent, at most `end_seconds`."""
        self._closed, self._failed = True, failed
        with suppress(queue.Full):
            self._queue.put(None, timeout=self._end_seconds)
            self._thread.join(self._end_seconds)
        if self._thread.is_alive():
            self._drop_all(f"has not taken everything within {self._end_seconds:.0f} s")

    def _send(self) -> None:
        """Send queued events until the run ends, or no tracker is left."""
        while self._active:
            item = self._queue.get()
            flush = self._queue.empty()
            for name in list(self._active):
                if not self._active:
                    return  # All were dropped while one of them blocked.
                self._busy = name
                try:
                    self._send_to(name, item, flush)
                except (
                    Exception
                ) as error:  # a tracker's network, disk or package may raise anything
                    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
                    self._drop(name, f"{type(error).__name__}: {reason}")
            if item is None:
                return

    def _send_to(self, name: TrackerName, item: Event | None, flush: bool) -> None:
        if name not in self._feeds:
            ledger = Ledger.load(self._run_dir / _FOLDER / f"{name}.json")
            self._feeds[name] = _Feed(self._run_dir, ledger, lambda used: self._open(name, used))
        feed = self._feeds[name]
        if item is None:
            feed.close(self._failed)
            return
        feed.handle(*item)
        if flush:
            feed.flush()

    def _open(self, name: TrackerName, ledger: Ledger) -> Tracker:
        settings = json.loads(masked(without_secrets(self._job.model_dump_json())))
        info = RunInfo(self._job.name, self._run_dir, dict(leaves_of(settings)), ledger.ids)
        return TRACKERS[name](info)

    def _drop_all(self, reason: str) -> None:
        """Drop the tracker that blocks the thread, and with it all that wait for the thread."""
        self._closed, busy = True, self._busy
        for name in list(self._active):
            self._drop(
                name, f"{'it' if busy in ('', name) else f'{busy}, which is before it,'} {reason}"
            )

    def _drop(self, name: TrackerName, reason: str) -> None:
        try:
            self._active.remove(name)
        except ValueError:
            return  # The other thread has dropped it.
        self._warn(
            name,
            without_secrets(
                f"{name} receives nothing more of this run: {reason}. The run continues without it;"
                " when it is started again, it tries again"
            ),
        )
