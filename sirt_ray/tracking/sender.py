"""Trackers hear what a run tells, each in a thread of its own, and can never hold it up.

A tracker that raises, or does not keep up, is given up: one warning says why, and the run goes on
without it.
"""

import json
import logging
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
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
from sirt_ray.tracking.base import RUN, Examples, Origin, Tracker
from sirt_ray.tracking.mlflow import MlflowTracker
from sirt_ray.tracking.tensorboard import TensorboardTracker
from sirt_ray.tracking.wandb import WandbTracker

# FOLDED tracking.packages: Every tracker under the name that job files use, and the package that it needs.

TRACKERS: dict[TrackerName, Callable[[Origin], Tracker]] = {
    "tensorboard": TensorboardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}
_PACKAGES: dict[TrackerName, str] = {
    "tensorboard": "tensorboardX",
    "mlflow": "mlflow",
    "wandb": "wandb",
}


def check_installed(names: Sequence[TrackerName]) -> None:
    """Raise ConfigError where a tracker's package is missing."""
    missing = [name for name in names if find_spec(_PACKAGES[name]) is None]
    if missing:
        extras = ",".join(missing)
        raise ConfigError(
            f"tracking names {' and '.join(missing)}, which is not installed here. Install it with"
            f" `pip install 'sirt-ray[{extras}]'`, or take it out of tracking"
        )


# FOLDED tracking.feed: What a run tells -> what a tracker is told: each thing once, however often the run goes on.

_METRICS = "metrics.jsonl"
_FILES = ("config.yaml", "scores.json", "report.html")
_EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "demonstrations": ("prompt", "completion", "verdict"),
    "pairs": ("prompt", "chosen", "rejected", "rule"),
    "evaluation": ("prompt", "completion", "verdict", "reference"),
}
"""Columns to show, of these artifacts."""
_NUM_EXAMPLES = 10
_SAVE_EVERY_SECONDS = 5.0
"""While a training goes on; at the end of a stage what was told is saved at once."""


@dataclass
class Sent:
    """What a tracker has been told, in a file of the run's folder."""

    path: Path
    steps: dict[str, int] = field(default_factory=dict)
    """Last step of a training that is not finished."""
    finished: dict[str, str] = field(default_factory=dict)
    """Artifact -> when it was finished, by its record."""
    scores: dict[str, Any] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> "Sent":
        """As the run's folder has it, wherever that lies."""
        return cls(path, **(read_json(path) or {}))

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stated = {name: vars(self)[name] for name in ("steps", "finished", "scores", "ids")}
        write_json(self.path, stated)


class Feed:
    """Takes what a run tells, its events by their names and fields. The tracker is opened when
    there is something to tell it."""

    def __init__(self, run_dir: Path, sent: Sent, open: Callable[[Sent], Tracker]) -> None:
        self._run_dir, self._sent, self._open = run_dir, sent, open
        self._opened: Tracker | None = None
        self._saved = time.monotonic()

    def hear(self, event: str | None, fields: Mapping[str, Any]) -> None:
        name = fields.get("artifact", "")
        if event == "step":
            self._step(name, fields["line"])
        elif name and (event == "finished" or (event == "reused" and self._is_news(name))):
            self._artifact(name, fields["counts"])
        elif event == "rolled_back":
            version = fields["version"]
            self._tracker.log(version, {"rolled_back": 1.0}, _round(version))
        elif "scores" in fields and self._sent.scores.get(fields["version"]) != fields["scores"]:
            self._scores(fields["version"], fields["scores"])

    def flush(self) -> None:
        """Show what was heard. What a kill forgets of it is told again."""
        if self._opened is None:
            return
        self._opened.flush()
        if time.monotonic() - self._saved > _SAVE_EVERY_SECONDS:
            self._sent.save()
            self._saved = time.monotonic()

    def end(self, failed: bool) -> None:
        if self._opened is None:
            return
        for name in _FILES:
            if (self._run_dir / name).is_file():
                self._opened.file(self._run_dir / name)
        self._opened.close(failed)
        self._share()

    def _share(self) -> None:
        """For who continues the run on another machine."""
        self._sent.save()
        object_store.push(self._sent.path)

    @property
    def _tracker(self) -> Tracker:
        if self._opened is None:
            self._opened = self._open(self._sent)
        return self._opened

    def _step(self, name: str, line: Mapping[str, Any]) -> None:
        step = line["step"]
        if step > self._sent.steps.get(name, 0):
            told = {key: value for key, value in line.items() if key not in ("step", "total_steps")}
            self._tracker.log(name, dict(_flat(told)), step)
            self._sent.steps[name] = step

    def _artifact(self, name: str, counts: Mapping[str, Any]) -> None:
        """Its counts and examples. Of a training also the steps that nobody was there to see: its
        last ones, and all of one that was finished before the tracker was named."""
        for line in _lines(self._run_dir / name / _METRICS):
            self._step(name, line)
        self._sent.steps.pop(name, None)
        # A training has curves of the same names, and steps with the numbers of rounds.
        self._tracker.log(name, dict(_flat({"record": counts})), _round(name))
        rows = _examples(self._run_dir / name, name.rpartition("/")[2])
        if rows:
            self._tracker.examples(name, rows, _round(name))
        self._sent.finished[name] = self._when(name)
        self._share()

    def _scores(self, version: str, scores: Mapping[str, Any]) -> None:
        """Students as a curve over the rounds; teacher and baseline stand by themselves."""
        figures = {
            f"{figure}/{benchmark}/{kind}": score[figure]
            for benchmark, kinds in scores.items()
            for kind, score in kinds.items()
            for figure in ("accuracy", "stderr")
        }
        place = RUN if version.startswith("round_") else version
        self._tracker.log(place, figures, _round(version))
        self._sent.scores[version] = dict(scores)
        self._share()

    def _is_news(self, name: str) -> bool:
        return self._sent.finished.get(name) != self._when(name)

    def _when(self, name: str) -> str:
        return (read_json(self._run_dir / name / RECORD) or {}).get("finished", "")


def _flat(value: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures among the leaves."""
    for name, leaf in leaves_of(value, "/"):
        if isinstance(leaf, int | float):
            yield name, float(leaf)


def _round(name: str) -> int:
    """`round_02/pairs` -> 2; 0 where there is none."""
    number = name.partition("/")[0].removeprefix("round_")
    return int(number) if number.isdigit() else 0


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    content = object_store.read(path)
    if content is not None:
        yield from map(json.loads, content.splitlines())


def _examples(folder: Path, kind: str) -> Examples:
    if kind not in _EXAMPLES or not parquet.files(object_store.fetch(folder, RECORD)):
        return []
    rows: list[Mapping[str, str]] = []
    for row in parquet.rows(folder, _EXAMPLES[kind]):
        rows.append({name: _text(row[name]) for name in _EXAMPLES[kind]})
        if len(rows) == _NUM_EXAMPLES:
            break
    return rows


def _text(value: str | None) -> str:
    """A pair that is only imitated has nothing rejected."""
    return "" if value is None else value


_FOLDER = "tracking"
"""In a run's folder: what each tracker has been told."""

_MOST_WAITING = 10_000
"""Things that a tracker has not taken yet, after which it is given up."""
_END_SECONDS = 30.0
"""For what it has not taken when the run is over."""

Warn = Callable[[str, str], None]
"""(tracker, message)"""
Heard = tuple[str | None, Mapping[str, Any]]


class Sender:
    """One tracker. `open` makes it, in its thread, when there is something to tell it."""

    def __init__(
        self,
        name: str,
        open: Callable[[Sent], Tracker],
        run_dir: Path,
        warn: Warn,
        end_seconds: float = _END_SECONDS,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._name, self._open, self._run_dir, self._warn = name, open, run_dir, warn
        self._end_seconds = end_seconds
        self._waiting: queue.Queue[Heard | None] = queue.Queue(most_waiting)
        self._given_up = self._ended = self._failed = False
        self._thread = start_thread(self._send, f"tracker {name}")

    def put(self, event: str | None, fields: Mapping[str, Any]) -> None:
        if self._given_up or self._ended:
            return
        try:
            self._waiting.put_nowait((event, fields))
        except queue.Full:
            self._give_up(f"it does not keep up ({self._waiting.maxsize:,} things wait for it)")

    def end(self, failed: bool) -> None:
        """Wait until everything is sent, but not long."""
        if self._given_up or self._ended:
            return
        self._ended, self._failed = True, failed
        with suppress(queue.Full):
            self._waiting.put(None, timeout=self._end_seconds)
            self._thread.join(self._end_seconds)
        if self._thread.is_alive():
            self._give_up(f"it has not taken everything within {self._end_seconds:.0f} s")

    def _send(self) -> None:
        try:
            self._send_all()
        except Exception as error:  # a tracker's network, disk and package may raise anything
            said = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            self._give_up(without_secrets(f"{type(error).__name__}: {said}"))

    def _send_all(self) -> None:
        sent = Sent.of(self._run_dir / _FOLDER / f"{self._name}.json")
        feed = Feed(self._run_dir, sent, self._open)
        while (heard := self._waiting.get()) is not None:
            if self._given_up:
                return
            feed.hear(*heard)
            if self._waiting.empty():
                feed.flush()
        feed.end(self._failed)

    def _give_up(self, reason: str) -> None:
        if not self._given_up:
            self._given_up = True
            self._warn(
                self._name,
                f"{self._name} is told nothing more of this run: {reason}. The run goes on; when it"
                " is started again, it tries again",
            )


class Trackers(logging.Handler):
    """All trackers of a job. They end with the run: with its last event."""

    def __init__(
        self, job: JobConfig, run_dir: Path, warn: Warn, end_seconds: float = _END_SECONDS
    ) -> None:
        super().__init__()
        self._senders = [
            Sender(name, partial(_opened, name, job, run_dir), run_dir, warn, end_seconds)
            for name in dict.fromkeys(job.tracking)
        ]

    def createLock(self) -> None:
        """None: a tracker that fails while its end is waited for could not say so."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        event: str | None = record.__dict__.get("event")
        fields: Mapping[str, Any] = record.__dict__.get("fields", {})
        of_run = "artifact" not in fields
        for sender in self._senders:
            sender.put(event, fields)
            if event == "stopped" or (event == "finished" and of_run):
                sender.end(failed=event == "stopped")


def _opened(name: TrackerName, job: JobConfig, run_dir: Path, sent: Sent) -> Tracker:
    stated = json.loads(masked(without_secrets(job.model_dump_json())))
    return TRACKERS[name](Origin(job.name, run_dir, dict(leaves_of(stated)), sent.ids))
