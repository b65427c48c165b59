"""TensorBoard: event files in `RUN_DIR/tensorboard`, a folder for each scope.

    tensorboard --logdir runs/quickstart/tensorboard

They are written in the calling thread, so that a full disk raises in the call. A run that is
resumed adds files to the same folders, which TensorBoard reads as one.
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sirt_ray.storage import object_store
from sirt_ray.tracking.base import RUN, Examples, Figures, RunInfo

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

FOLDER = "tensorboard"
_PUSH_EVERY_SECONDS = 60.0
"""To object storage, if the run is there."""


class TensorboardTracker:
    def __init__(self, info: RunInfo) -> None:
        self._folder = info.folder / FOLDER
        self._writers: dict[str, EventsWriter] = {}
        self._pushed = time.monotonic()
        if "begun" not in info.ids:
            self._text(RUN, "settings", _as_code(dict(info.settings)), 0)
            info.ids["begun"] = "yes"

    def log(self, scope: str, figures: Figures, step: int) -> None:
        from tensorboardX import summary

        for name, value in figures.items():
            self._write(scope, summary.scalar(name, value), step)

    def examples(self, scope: str, rows: Examples, step: int) -> None:
        for number, row in enumerate(rows):
            self._text(scope, f"example {number}", _as_code(dict(row)), step)

    def file(self, path: Path) -> None:
        self._text(RUN, path.name, f"`{path}`", 0)

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()
        if time.monotonic() - self._pushed > _PUSH_EVERY_SECONDS:
            object_store.push(self._folder)
            self._pushed = time.monotonic()

    def close(self, failed: bool) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        object_store.push(self._folder)

    def _text(self, scope: str, name: str, text: str, step: int) -> None:
        from tensorboardX import summary

        self._write(scope, summary.text(name, text), step)

    def _write(self, scope: str, what: Any, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import (
            Event,  # pyright: ignore[reportAttributeAccessIssue]: protobuf makes it at run time
        )

        if scope not in self._writers:
            folder = self._folder / scope
            folder.mkdir(parents=True, exist_ok=True)
            # Two drivers within a second would write to the same file without it.
            self._writers[scope] = EventsWriter(str(folder / "events"), f".{time.time_ns():x}")
        self._writers[scope].write_event(Event(wall_time=time.time(), step=step, summary=what))


def _as_code(value: dict[str, Any]) -> str:
    """Return Markdown that shows texts as they are: four spaces make code of a line."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str).replace("\\n", "\n  ")
    return "\n".join(f"    {line}" for line in text.splitlines())
