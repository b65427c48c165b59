"""What a run tells -> what a tracker is told: each thing once, however often the run goes on."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sirt_ray.artifacts import parquet
from sirt_ray.artifacts.store import RECORD
from sirt_ray.config.base import leaves_of
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import read_json, write_json
from sirt_ray.tracking.base import RUN, Examples, Tracker

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
