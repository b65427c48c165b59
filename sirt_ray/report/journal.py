"""What happened in a run: `events.jsonl` and `scores.json` in its folder, lines on the console."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from sirt_ray import storage
from sirt_ray.artifacts import write_json
from sirt_ray.core.scoring import scores_to_json
from sirt_ray.report.summary import summary
from sirt_ray.types import Scores


class RunJournal:
    """The Journal of the loop and the Tell of the store."""

    def __init__(self, root: Path, console: Console) -> None:
        self._root = root
        self._console = console
        self._scores: dict[str, Any] = {}
        self._events = root / "events.jsonl"
        storage.pull(self._events)
        scores = storage.read(root / "scores.json")
        if scores is not None:
            self._scores = json.loads(scores)

    def event(self, kind: str, message: str, **fields: Any) -> None:
        self._write(kind, message=message, **fields)
        self._console.print(f"[yellow]![/] {escape(message)}", soft_wrap=True)

    def scores(self, stage: str, scores: Scores) -> None:
        self._scores[stage] = scores_to_json(scores)
        self._write_scores()

    def finish(self, scores: Mapping[str, Scores]) -> None:
        """Leave the scores of this job's stages, and of no other, in `scores.json`."""
        self._scores = {stage: scores_to_json(found) for stage, found in scores.items()}
        self._write_scores()
        self._write("finished")

    def artifact(self, kind: str, name: str, **fields: Any) -> None:
        self._write(kind, artifact=name, **fields)
        if kind == "started":
            return
        if kind == "awaited":
            self._console.print(f"[dim]  {name}: waiting for the cell that makes it[/]")
            return
        took = f"{fields['seconds']:6.1f} s" if kind == "finished" else "  kept  "
        self._console.print(
            f"[green]✓[/] {name:20} {took}  [dim]{escape(summary(name, fields['counts']))}[/]",
            highlight=False,
            soft_wrap=True,
        )

    def _write_scores(self) -> None:
        write_json(self._root / "scores.json", self._scores)
        storage.push(self._root / "scores.json")

    def _write(self, kind: str, **fields: Any) -> None:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": kind}
        with self._events.open("a") as file:
            file.write(json.dumps(line | fields, default=str) + "\n")
        storage.push(self._events)


class _Silent:
    """Tells nobody: for looking at a run without running it."""

    def event(self, kind: str, message: str, **fields: Any) -> None: ...

    def scores(self, stage: str, scores: Scores) -> None: ...


SILENT = _Silent()
