"""A `Progress` that records what it is given, instead of a terminal's."""

import contextlib
from collections.abc import Iterator, Mapping


class RecordedProgress:
    def __init__(self) -> None:
        self.stages: list[tuple[str, float, str]] = []
        """Name, total and unit of each bar."""
        self.shown: list[tuple[float, Mapping[str, str | float]]] = []
        """How much is done, and what stood beside the bar."""

    @contextlib.contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator["RecordedProgress"]:
        self.stages.append((name, total, unit))
        yield self

    def update(self, done: float, **shown: str | float) -> None:
        self.shown.append((done, shown))
