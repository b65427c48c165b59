"""What happened in a run: `events.jsonl` and `scores.json` in its folder, lines on the console, and
all that is told meanwhile as JSON in `logs/driver.jsonl`."""

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from sirt_ray import logs
from sirt_ray.core.scoring import scores_to_json
from sirt_ray.errors import StorageError
from sirt_ray.logs import at_artifact
from sirt_ray.report.summary import summary
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import write_json
from sirt_ray.types import Scores

LOG_FILE = "logs/driver.jsonl"
_STAGE_LINE = re.compile(r"^[▸✓] (\S+).*\n?", re.MULTILINE)


def last_stage(log: str) -> str | None:
    """The stage that a run has begun or finished last, by what it wrote where no terminal was."""
    found = _STAGE_LINE.findall(log)
    return found[-1] if found else None


def after_last_stage(log: str) -> str:
    """What a run wrote behind its last stage: of a finished one, its scores."""
    end = 0
    for line in _STAGE_LINE.finditer(log):
        end = line.end()
    return log[end:]


def run_console() -> Console:
    """Standard output for a person, who is told nothing where SIRT_LOG=json leaves it to others."""
    return Console(quiet=logs.as_json())


class RunJournal(logging.Handler):
    """The Journal of the loop, the Tell of the store, and a handler for what all others tell.

    Every record goes to `logs/driver.jsonl`, and to standard output where SIRT_LOG is `json`; one
    that names an event, to `events.jsonl` as well; a warning, to the console. `also`: who hears the
    same, and each step of a training too, which is for nobody to read.
    """

    def __init__(self, root: Path, console: Console) -> None:
        super().__init__()
        self._root = root
        self._console = console
        self.setFormatter(logs.JsonFormatter())
        self.also: list[logging.Handler] = []
        self._scores: dict[str, Any] = {}
        self._events, self._log = root / "events.jsonl", root / LOG_FILE
        object_store.pull(self._events)
        object_store.pull(self._log)
        scores = object_store.read(root / "scores.json")
        if scores is not None:
            self._scores = json.loads(scores)

    def event(self, kind: str, message: str, **fields: Any) -> None:
        self.handle(logs.record(logging.WARNING, message, kind, **fields))

    def scores(self, stage: str, scores: Scores) -> None:
        self._scores[stage] = scores_to_json(scores)
        self._write_scores()
        self._note(None, f"scores of {stage}", version=stage, scores=self._scores[stage])

    def finish(self, scores: Mapping[str, Scores]) -> None:
        """Leave the scores of this job's stages, and of no other, in `scores.json`."""
        self._scores = {stage: scores_to_json(found) for stage, found in scores.items()}
        self._write_scores()
        self._note("finished", "the run is finished")

    def stopped(self, error: BaseException) -> None:
        """The run ends with `error`, which whoever catches it shows."""
        message = str(error) or "it was interrupted"
        with suppress(OSError, StorageError):  # What ended the run may be just that.
            self._note("stopped", message, logging.ERROR, error=type(error).__name__)

    def artifact(self, kind: str, name: str, **fields: Any) -> None:
        done = summary(name, fields["counts"]) if "counts" in fields else ""
        with at_artifact(name):
            self._note(kind, f"{kind} {name}{': ' * bool(done)}{done}", artifact=name, **fields)
        if kind == "started":
            if not self._console.is_terminal:  # A terminal has a bar.
                self._console.print(f"▸ {name}", highlight=False)
            return
        if kind == "awaited":
            self._console.print(f"[dim]  {name}: waiting for the cell that makes it[/]")
            return
        took = f"{fields['seconds']:6.1f} s" if kind == "finished" else "  kept  "
        self._console.print(
            f"[green]✓[/] {name:20} {took}  [dim]{escape(done)}[/]",
            highlight=False,
            soft_wrap=True,
        )

    def emit(self, record: logging.LogRecord) -> None:
        self._pass_on(record)
        if record.levelno < logging.INFO:
            return
        try:
            self._write(record)
        except (OSError, StorageError):  # they end the work itself, and not the telling of it
            self.handleError(record)
        if record.levelno >= logging.WARNING:
            self._console.print(f"[yellow]![/] {escape(record.getMessage())}", soft_wrap=True)

    def _note(
        self, kind: str | None, message: str, level: int = logging.INFO, /, **fields: Any
    ) -> None:
        """What the console shows in another way, or not at all."""
        record = logs.record(level, message, kind, **fields)
        self.acquire()
        try:
            self._write(record)
        finally:
            self.release()
        self._pass_on(record)

    def _pass_on(self, record: logging.LogRecord) -> None:
        """Of a run's end without a lock: who hears of it may wait, and others tell meanwhile."""
        for handler in self.also:
            handler.handle(record)

    def _write(self, record: logging.LogRecord) -> None:
        told = record.__dict__
        line = self.format(record)
        _append(self._log, line)
        if logs.as_json():
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        if told.get("event"):
            event = {
                "time": logs.utc(record.created),
                "event": told["event"],
                "message": record.getMessage(),
                **told["fields"],
            }
            _append(self._events, json.dumps(event, default=str))
            object_store.push(self._events)
            object_store.push(self._log)

    def _write_scores(self) -> None:
        write_json(self._root / "scores.json", self._scores)
        object_store.push(self._root / "scores.json")


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(f"{line}\n")


class _Silent:
    """Tells nobody: for looking at a run without running it."""

    def event(self, kind: str, message: str, **fields: Any) -> None: ...

    def scores(self, stage: str, scores: Scores) -> None: ...


SILENT = _Silent()
