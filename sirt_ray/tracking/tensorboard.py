"""TensorBoard: event files in `RUN_DIR/tensorboard`, a folder for each place.

    tensorboard --logdir runs/quickstart/tensorboard

Written in the calling thread, so that a full disk is an error here and now. A run that is continued
adds files to the same folders, which TensorBoard reads as one.
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sirt_ray.storage import object_store
from sirt_ray.tracking.base import RUN, Examples, Figures, Origin

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

FOLDER = "tensorboard"
_PUSH_EVERY_SECONDS = 60.0
"""To object storage, where the run lies there."""


class TensorboardTracker:
    def __init__(self, origin: Origin) -> None:
        self._folder = origin.folder / FOLDER
        self._writers: dict[str, EventsWriter] = {}
        self._pushed = time.monotonic()
        if "begun" not in origin.ids:
            self._text(RUN, "settings", _as_code(dict(origin.settings)), 0)
            origin.ids["begun"] = "yes"

    def log(self, place: str, figures: Figures, step: int) -> None:
        from tensorboardX import summary

        for name, value in figures.items():
            self._write(place, summary.scalar(name, value), step)

    def examples(self, place: str, rows: Examples, step: int) -> None:
        for number, row in enumerate(rows):
            self._text(place, f"example {number}", _as_code(dict(row)), step)

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

    def _text(self, place: str, name: str, text: str, step: int) -> None:
        from tensorboardX import summary

        self._write(place, summary.text(name, text), step)

    def _write(self, place: str, what: Any, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import (
            Event,  # pyright: ignore[reportAttributeAccessIssue]: protobuf makes it at run time
        )

        if place not in self._writers:
            folder = self._folder / place
            folder.mkdir(parents=True, exist_ok=True)
            # Two drivers within a second would write to the same file without it.
            self._writers[place] = EventsWriter(str(folder / "events"), f".{time.time_ns():x}")
        self._writers[place].write_event(Event(wall_time=time.time(), step=step, summary=what))


def _as_code(value: dict[str, Any]) -> str:
    """As Markdown that shows texts as they are: four spaces make code of a line."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str).replace("\\n", "\n  ")
    return "\n".join(f"    {line}" for line in text.splitlines())
