"""What a run writes about itself: `events.jsonl` and `scores.json` in its folder, lines on the
console, and every log record as JSON in `logs/driver.jsonl`."""

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from sirt_ray import logs
from sirt_ray.core.repetition import MAX_REPEATED_SHARE, repeated_share
from sirt_ray.core.scoring import scores_from, scores_to_json
from sirt_ray.errors import StorageError
from sirt_ray.logs import at_artifact
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import write_json
from sirt_ray.storage.writing import append
from sirt_ray.types import Scores

LOG_FILE = "logs/driver.jsonl"
_STAGE_LINE = re.compile(r"^[▸✓] (\S+).*\n?", re.MULTILINE)


def last_stage(log: str) -> str | None:
    """Return the stage that a run started or finished last, by its output without a terminal."""
    found = _STAGE_LINE.findall(log)
    return found[-1] if found else None


def after_last_stage(log: str) -> str:
    """Return what a run printed after its last stage: for a finished run, its scores."""
    end = 0
    for line in _STAGE_LINE.finditer(log):
        end = line.end()
    return log[end:]


def run_console() -> Console:
    """Return standard output for a person, silent if SIRT_LOG=json reserves it for logs."""
    return Console(quiet=logs.as_json())


class RunJournal(logging.Handler):
    """The Journal of the loop, the callback of the store, and a handler of all other log records.

    Every record is written to `logs/driver.jsonl`, and to standard output if SIRT_LOG is `json`;
    one that names an event also to `events.jsonl`; a warning also to the console. `also`: handlers
    that receive the same records, and each step of a training, which is written nowhere.
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
        """Write the scores of this job's stages, and of no other, to `scores.json`."""
        self._scores = {stage: scores_to_json(found) for stage, found in scores.items()}
        self._write_scores()
        self._note("finished", "the run is finished")

    def stopped(self, error: BaseException) -> None:
        """Record that the run ends with `error`, which is shown by its handler."""
        message = str(error) or "it was interrupted"
        with suppress(OSError, StorageError):  # The run may have ended because of just that.
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
            self._console.print(f"[dim]  {name}: waiting for the trial that makes it[/]")
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
        except (OSError, StorageError):  # The work itself fails on these, its log does not.
            self.handleError(record)
        if record.levelno >= logging.WARNING:
            self._console.print(f"[yellow]![/] {escape(record.getMessage())}", soft_wrap=True)

    def _note(
        self, kind: str | None, message: str, level: int = logging.INFO, /, **fields: Any
    ) -> None:
        """Record what the console shows in another way, or not at all."""
        record = logs.record(level, message, kind, **fields)
        self.acquire()
        try:
            self._write(record)
        finally:
            self.release()
        self._pass_on(record)

    def _pass_on(self, record: logging.LogRecord) -> None:
        """Pass a record on. At a run's end no lock is held: a handler may wait then, while other
        threads log."""
        for handler in self.also:
            handler.handle(record)

    def _write(self, record: logging.LogRecord) -> None:
        extra = record.__dict__
        line = self.format(record)
        _append(self._log, line)
        if logs.as_json():
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        if extra.get("event"):
            event = {
                "time": logs.utc(record.created),
                "event": extra["event"],
                "message": record.getMessage(),
                **extra["fields"],
            }
            _append(self._events, json.dumps(event, default=str))
            object_store.push(self._events)
            object_store.push(self._log)

    def _write_scores(self) -> None:
        write_json(self._root / "scores.json", self._scores)
        object_store.push(self._root / "scores.json")


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(exist_ok=True)
    append(path, f"{line}\n")


Counts = Mapping[str, Any]


def summary(name: str, counts: Counts) -> str:
    """Return a record's counts in one line. `name`: the artifact's path below the run folder, whose
    last part is its kind."""
    return _BY_KIND[name.rsplit("/", maxsplit=1)[-1]](counts)


def _questions(counts: Counts) -> str:
    parts: list[str] = []
    for benchmark, found in counts.items():
        sizes = [
            f"{found[split]['questions']:,} {split}"
            for split in ("train", "validation", "test")
            if split in found
        ]
        parts.append(f"{benchmark} {' + '.join(sizes)}")
    return "; ".join(parts)


def _demonstrations(counts: Counts) -> str:
    kept = f"{counts['kept']:,} kept of {counts['questions']:,} questions" + _reasons(
        {key: n for key, n in counts.items() if key.startswith("dropped_")}
    )
    if "file" not in counts:
        sampling = counts.get("sampling", {})
        return kept + _unanswered(sampling) + _effort(sampling)
    file = counts["file"]
    unused = {key: n for key, n in file.items() if key.endswith("_rows")}
    return f"{kept}; {file['matched']:,} of the file's {file['rows']:,} rows used{_reasons(unused)}"


def _student(counts: Counts) -> str:
    steps = f"{counts['steps']:,}"
    if "stopped_early" in counts:
        steps += f" of {counts['planned_steps']:,}"
    repeated = counts.get("repeated", {})
    again = f" ({repeated['steps']:,} done again)" if repeated.get("steps") else ""
    again += "".join(f"; unreadable {found}" for found in repeated.get("unreadable", []))
    return (
        f"{counts['examples']:,} examples, {steps} steps{again}{_validation(counts)}"
        f"{_reasons(counts['left_out'])}{_training(counts)}"
    )


def _validation(counts: Counts) -> str:
    """Describe the chosen weights; empty if no question was held out."""
    found = counts.get("validation")
    if not found:
        return ""
    accuracy = f" and accuracy {found['accuracy']:.0%}" if "accuracy" in found else ""
    return f", validation loss {found['loss']:.4f}{accuracy} at step {counts['chosen_step']}"


def _training(counts: Counts) -> str:
    """Describe speed, the worker's memory and warnings; empty for records of earlier versions,
    which lack them."""
    if "warnings" not in counts:
        return ""
    speed = counts["tokens"] / counts["seconds"] if counts["seconds"] else 0
    names = ", ".join(warning["name"] for warning in counts["warnings"])
    return (
        f"; {speed:,.0f} tokens/s, {counts['peak_memory_gib']:.1f} GiB"
        f"{f'; warnings: {names}' if names else ''}"
    )


def _samples(counts: Counts) -> str:
    made = counts["completions"]
    verdicts = ", ".join(
        f"{counts[verdict] / made:.0%} {verdict}" for verdict in ("right", "wrong", "unparseable")
    )
    reasons = {
        "truncated completions": counts["truncated"],
        # Records of earlier versions lack these.
        "guessed answers": counts.get("guessed", 0),
        "answers given up on, so wrong": counts.get("undecided", 0),
        "questions without the teacher's answer": counts["without_teacher_answer"],
        "questions of other tasks": counts.get("of_other_tasks", 0),
        "questions beyond data.fraction": counts.get("beyond_fraction", 0),
        **{f"questions dropped: {reason}": n for reason, n in counts["dropped"].items()},
    }
    share = repeated_share(counts)
    repeated = f"; {share:.0%} of 4-grams repeated" if share > MAX_REPEATED_SHARE else ""
    return (
        f"{made:,} completions of {counts['questions']:,} questions: {verdicts}{_reasons(reasons)}"
        f"{repeated}{_effort(counts)}"
    )


def _pairs(counts: Counts) -> str:
    kept = {"questions", "pairs", "questions_paired", "completions"}
    return (
        f"{counts['pairs']:,} pairs from {counts['questions_paired']:,} of"
        f" {counts['questions']:,} questions"
        + _listed({pair_reason(key): n for key, n in counts.items() if key not in kept})
    )


def pair_reason(key: str) -> str:
    """Return the name of a count of what made no pair, in words."""
    kind, _, reason = key.partition("_")
    if kind == "completions":
        return f"{reason} completions"
    rule, without, missing = key.partition("_without_")
    if not without:
        return f"{kind} with {reason.replace('_', ' ')}"
    what = missing if missing == "demonstration" else f"{missing} answer"
    return f"questions without a {what} for {rule}"


def _reference(counts: Counts) -> str:
    return f"log-probabilities of {counts['pairs']:,} pairs{_reasons(counts['left_out'])}"


def _evaluation(counts: Counts) -> str:
    scores = scores_from(counts["test"])
    by_kind = {
        kind: [f"{name} {100 * found[kind].accuracy:.1f}" for name, found in scores.items()]
        for kind in next(iter(scores.values()))
    }
    shown = "; ".join(f"{kind}: {', '.join(shown)}" for kind, shown in by_kind.items())
    return shown + _unanswered(counts.get("sampling", {}))


def _unanswered(sampling: Counts) -> str:
    """Describe the questions that have no answer, by reason; empty if there are none."""
    reasons = sampling.get("dropped", {})
    return f"; questions without an answer{_reasons(reasons)}" if any(reasons.values()) else ""


def _effort(sampling: Counts) -> str:
    """Describe the sampling speed, and the cost at an endpoint; empty for records of earlier
    versions, which lack them."""
    if "usage" not in sampling:
        return ""
    retries = f", {sampling['retries']:,} calls made again" if sampling["retries"] else ""
    cost = f", cost {sampling['cost']:.2f}" if "cost" in sampling else ""
    return f"; {sampling['usage']['tokens_per_second']:,} tokens/s{retries}{cost}"


def _reasons(counts: Mapping[str, int]) -> str:
    return _listed({reason.replace("_", " "): n for reason, n in counts.items()})


def _listed(counts: Mapping[str, int]) -> str:
    """Format as ` (12 wrong, 3 truncated)`; empty if nothing was dropped."""
    parts = [f"{n:,} {reason}" for reason, n in counts.items() if n]
    return f" ({', '.join(parts)})" if parts else ""


_BY_KIND = {
    "questions": _questions,
    "demonstrations": _demonstrations,
    "student": _student,
    "samples": _samples,
    "pairs": _pairs,
    "reference": _reference,
    "evaluation": _evaluation,
}


@dataclass(frozen=True, slots=True)
class JsonLines:
    """The content of a file of JSON lines, which another process may be writing."""

    rows: tuple[dict[str, Any], ...]
    """The objects, in order."""
    broken: int = 0
    """Number of lines that are not a JSON object. A last line without its end is still being
    written, and is not counted."""
    end: int = 0
    """Offset of the byte after the last whole line: where to continue."""


def json_lines(path: Path, start: int = 0) -> JsonLines:
    """Return the whole lines of a file from the byte `start` on; none if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            text = file.read()
    except FileNotFoundError:
        return JsonLines((), end=start)
    whole = text[: text.rfind(b"\n") + 1]
    found = [_object(line) for line in whole.splitlines() if line.strip()]
    rows = tuple(row for row in found if row is not None)
    return JsonLines(rows, len(found) - len(rows), start + len(whole))


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        return None
    return found if isinstance(found, dict) else None
