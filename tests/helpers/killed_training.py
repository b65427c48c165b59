"""A training that dies at a known step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sirt_ray.training.workdir import WorkDir


class KilledError(Exception):
    """In the place of a killed process."""


class KilledAt(WorkDir):
    """A work folder whose trainer dies when it has done `step`."""

    def __init__(self, out: Path, step: int) -> None:
        super().__init__(out)
        self._step = step

    def append(self, line: Mapping[str, Any]) -> None:
        super().append(line)
        if line["step"] == self._step:
            raise KilledError
