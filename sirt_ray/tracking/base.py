"""What a tracker is: something that keeps figures of many runs for people to look at.

One file each beside this one; `packages.py` names them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Figures = Mapping[str, float]

Examples = Sequence[Mapping[str, str]]
"""Rows with the same columns; texts of models, which are untrusted."""

RUN = ""
"""The place of what belongs to the run itself. Other places are artifacts (`round_01/student`), or
what they have in common (`round_01`, `teacher`)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The run that is tracked."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    """The job, flat: `refine.beta` -> 0.1."""
    ids: dict[str, str]
    """What a tracker wants to know again when the run is continued; kept in the run's folder."""


class Tracker(Protocol):
    """Every call may take long or raise; that is nobody's concern but the caller's thread's."""

    def log(self, place: str, figures: Figures, step: int) -> None:
        """Figures of a training step, or of a round where `place` is no training."""
        ...

    def examples(self, place: str, rows: Examples, step: int) -> None: ...

    def file(self, path: Path) -> None:
        """A small file of the run: its settings, scores, report."""
        ...

    def flush(self) -> None: ...

    def close(self, failed: bool) -> None: ...
