"""The interface of a tracker: a package that keeps figures of many runs for people to look at.

Each tracker has a file in this folder; `sender.py` has their list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Figures = Mapping[str, float]

Examples = Sequence[Mapping[str, str]]
"""Rows with the same columns, of texts by models, which are untrusted."""

RUN = ""
"""The scope of what belongs to the run itself. Other scopes are artifacts (`round_01/student`), or
what several artifacts share (`round_01`, `teacher`)."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The run that is tracked."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    """The job, flat: `refine.beta` -> 0.1."""
    ids: dict[str, str]
    """What a tracker needs again when the run is resumed; kept in the run's folder."""


class Tracker(Protocol):
    """Every call may block or raise: it is made in the thread of `Trackers`, which handles both."""

    def log(self, scope: str, figures: Figures, step: int) -> None:
        """Log figures of a training step, or of a round where `scope` is not a training."""
        ...

    def examples(self, scope: str, rows: Examples, step: int) -> None: ...

    def file(self, path: Path) -> None:
        """Keep a small file of the run: its settings, scores, report."""
        ...

    def flush(self) -> None: ...

    def close(self, failed: bool) -> None: ...
