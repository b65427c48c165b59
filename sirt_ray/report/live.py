"""The page of a run in progress, which its driver rewrites as stages end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

PAGE = "report.html"
"""In the run's folder."""
_PAUSE_FACTOR = 50
"""The page may take a fiftieth of the run's time: after a page, this many times its own duration
pass before the next. Only the last page is always written."""


class EventLog(Protocol):
    def event(self, kind: str, message: str) -> None: ...


class LiveReport:
    """Keeps `report.html` in a run's folder up to date. A failure is logged once, and stops only
    the page."""

    def __init__(
        self,
        run_dir: Path,
        journal: EventLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_dir, self._journal, self._clock = run_dir, journal, clock
        self._next = float("-inf")
        self._failed = False

    @property
    def path(self) -> Path | None:
        """Path of the page; None if it could not be written."""
        return None if self._failed else self._run_dir / PAGE

    def refresh(self, last: bool = False) -> None:
        """Write the page, unless the last one is too recent; `last`: in any case."""
        started = self._clock()
        if self._failed or (started < self._next and not last):
            return
        try:
            from sirt_ray.report.command import report_page, write_report

            write_report(self._run_dir / PAGE, report_page([self._run_dir]))
        except Exception as error:  # Whatever it is, the run matters more than its page.
            self._failed = True
            self._journal.event(
                "page_failed",
                f"{PAGE} cannot be written: {type(error).__name__}: {error}. The run continues"
                f" without it; `sirt report {self._run_dir}` makes it at any time",
            )
        ended = self._clock()
        self._next = ended + _PAUSE_FACTOR * (ended - started)
