"""The status of a run that another process drives, from its events and the files of its current
stage."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sirt_ray.artifacts.locks import is_locked
from sirt_ray.artifacts.store import partial_of
from sirt_ray.errors import DataError
from sirt_ray.report.journal import json_lines
from sirt_ray.report.page.effort import duration, kind_of, time_of
from sirt_ray.storage import object_store
from sirt_ray.training.workdir import WorkDir, last_line

State = Literal["at work", "finished", "stopped", "gone"]
"""`gone`: no driver holds the folder's lock, and none has logged that it stops."""

_SILENT_SECONDS = 10.0
"""After this time without an event, the folder's lock is checked."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What a run is doing."""

    state: State
    stage: str | None = None
    """The artifact in progress, or that was in progress when the run ended."""
    since: float | None = None
    """Its start, in seconds since 1970."""
    why: str = ""
    """The reason of a run that has stopped."""


def status_of(events: Sequence[Mapping[str, Any]]) -> RunStatus:
    """Return the status of a run by its events; before the first, it is at work."""
    found = RunStatus("at work")
    for event in events:
        match event:
            case {"event": "started", "artifact": str(artifact)}:
                found = RunStatus("at work", artifact, time_of(event))
            case {"event": "finished" | "reused", "artifact": str()}:
                found = RunStatus("at work")
            case {"event": "finished"}:
                found = RunStatus("finished")
            case {"event": "stopped" | "failed"}:
                why = str(event.get("message", ""))
                found = RunStatus("stopped", found.stage, found.since, why)
            case _:
                pass
    return found


def format_event(event: Mapping[str, Any]) -> str | None:
    """Format an event as a line; None for one without news."""
    match event:
        case {"event": "finished", "artifact": str(artifact), "message": str(message)}:
            took = event.get("seconds")
            shown = duration(took) if isinstance(took, int | float) else ""
            return f"✓ {artifact:20} {shown:>11}  {message.partition(': ')[2]}"
        case {"event": "started" | "reused" | "finished" | "stopped" | "failed" | "awaited"}:
            return None
        case {"message": str(message)}:
            return f"! {message}"
        case _:
            return None


@dataclass(slots=True)
class RunMonitor:
    """Follows a run's folder, which another process writes. Raises DataError for a folder that is
    not a run's."""

    run_dir: Path
    _events: list[dict[str, Any]] = field(default_factory=list)
    _end: int = 0
    _last_event: float = field(default_factory=time.monotonic)
    _rows: dict[Path, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object_store.pull(self.run_dir / "config.yaml")
        if not (self.run_dir / "config.yaml").is_file():
            raise DataError(
                f"{object_store.to_uri(self.run_dir)} is not the folder of a run: it has no"
                " config.yaml. Give a folder that `sirt run` has written or is writing, such as"
                " runs/quickstart, or one of a study's trials"
            )
        self._last_event -= _SILENT_SECONDS

    def new_lines(self) -> list[str]:
        """Return the lines of the events since the last call."""
        object_store.pull(self.run_dir / "events.jsonl")
        found = json_lines(self.run_dir / "events.jsonl", self._end)
        if found.rows:
            self._last_event = time.monotonic()
        self._events += found.rows
        first, self._end = not self._end, found.end
        lines = [line for event in found.rows if (line := format_event(event)) is not None]
        if first and found.rows:
            self._last_event -= _SILENT_SECONDS  # Old events do not show that it is alive.
        return lines

    def status(self) -> RunStatus:
        """Return the status by the events so far, and if they have stopped by the lock."""
        found = status_of(self._events)
        silent = time.monotonic() - self._last_event >= _SILENT_SECONDS
        if found.state != "at work" or not silent or is_locked(self.run_dir):
            return found
        return RunStatus("gone", found.stage, found.since)

    def progress(self, stage: str) -> str:
        """Return the progress of the current artifact, by its files; empty if there are none
        yet."""
        partial = partial_of(self.run_dir / stage)
        match kind_of(stage):
            case "training":
                return _training(WorkDir(partial).metrics)
            case "sampling":
                within = partial / "completions"
                return self._sampling(within if within.exists() else partial)
            case _:
                return ""

    def _sampling(self, folder: Path) -> str:
        for file in folder.glob("*.parquet"):
            if file not in self._rows:
                try:
                    self._rows[file] = pq.read_metadata(file).num_rows
                except (pa.ArrowInvalid, OSError):
                    continue
        done = sum(n for file, n in self._rows.items() if file.parent == folder)
        usage = _usage(folder / ".usage.json")
        parts = [f"{done:,} completions"] if done else []
        if usage.get("seconds"):
            rate = usage.get("generated_tokens", 0) / usage["seconds"]
            parts.append(f"{rate:,.0f} tokens/s")
        return ", ".join(parts)


def _usage(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _training(metrics: Path) -> str:
    """Return the progress of a training, by its last step."""
    object_store.pull(metrics)
    try:
        last = last_line(metrics)
    except (OSError, ValueError):
        return ""
    if last is None:
        return ""
    parts = [f"step {last.get('step')} of {last.get('total_steps')}"]
    for name, shown in (("loss", "loss {:.4g}"), ("margin", "margin {:.3g}")):
        if isinstance(last.get(name), int | float):
            parts.append(shown.format(last[name]))
    if isinstance(last.get("tokens_per_second"), int | float):
        parts.append(f"{last['tokens_per_second']:,.0f} tokens/s")
    return ", ".join(parts)
