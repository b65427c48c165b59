"""The page of a run that is under way, which its driver writes anew as stages end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

PAGE = "report.html"
"""In the run's folder."""
_WORTH = 50
"""The page may take a fiftieth of the run's time: after one, so many times its own time pass before
the next. Only the last one is always written."""


class Warned(Protocol):
    def event(self, kind: str, message: str) -> None: ...


class LiveReport:
    """Keeps `report.html` in a run's folder. That it cannot is told once, and stops nothing."""

    def __init__(
        self,
        run_dir: Path,
        journal: Warned,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_dir, self._journal, self._clock = run_dir, journal, clock
        self._next = float("-inf")
        self._failed = False

    @property
    def path(self) -> Path | None:
        """Of the page; None where it could not be written."""
        return None if self._failed else self._run_dir / PAGE

    def refresh(self, last: bool = False) -> None:
        began = self._clock()
        if self._failed or (began < self._next and not last):
            return
        try:
            from sirt_ray.report.command import report_page, write_text

            write_text(self._run_dir / PAGE, report_page([self._run_dir]))
        except Exception as error:  # whatever it is, the run is worth more than its page
            self._failed = True
            self._journal.event(
                "page_failed",
                f"{PAGE} cannot be written: {type(error).__name__}: {error}. The run goes on"
                f" without it; `sirt report {self._run_dir}` makes it at any time",
            )
        ended = self._clock()
        self._next = ended + _WORTH * (ended - began)
