"""Progress of a stage: bars in a terminal, a line every half minute in a log."""

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sirt_ray.core.interfaces import Bar
from sirt_ray.core.interfaces import Progress as ProgressProtocol
from sirt_ray.logs import log_event

_LOG_EVERY_SECONDS = 30.0


def _figures(figures: dict[str, str | float]) -> str:
    return "  ".join(
        f"{name.replace('_', ' ')} {value:,.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    )


class _RichBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, done: float, **shown: str | float) -> None:
        self._progress.update(self._task, completed=done, figures=_figures(shown))


class TerminalProgress:
    """One bar, with rate and time left, that disappears when its stage is done."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Generator[Bar]:
        columns = (
            TextColumn("  [bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[figures]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(name, total=total, unit=unit, figures="")
            yield _RichBar(progress, task)


class _LogBar:
    def __init__(self, console: Console, name: str, total: float, unit: str) -> None:
        self._console, self._name, self._total, self._unit = console, name, total, unit
        self._logged = self._started = time.monotonic()

    def update(self, done: float, **shown: str | float) -> None:
        now = time.monotonic()
        if now - self._logged < _LOG_EVERY_SECONDS or done >= self._total:
            return
        self._logged = now
        left = (now - self._started) / done * (self._total - done) if done else float("nan")
        text = f"{self._name}: {done:.0f}/{self._total:.0f} {self._unit}"
        self._console.print(f"  {text}, {left:.0f} s left  {_figures(shown)}", soft_wrap=True)
        log_event(logging.INFO, text, done=done, total=self._total, unit=self._unit, figures=shown)


class LogProgress:
    """A line every half minute, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Generator[Bar]:
        yield _LogBar(self._console, name, total, unit)


def progress_for(console: Console) -> ProgressProtocol:
    return TerminalProgress(console) if console.is_terminal else LogProgress(console)
