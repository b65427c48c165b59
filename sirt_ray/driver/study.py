"""The cells of a study, one after the other on one Ray; several at once are in `side_by_side`."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sirt_ray.config.resources import ResourcesConfig
from sirt_ray.config.study import Cell, Study
from sirt_ray.driver import run as running
from sirt_ray.errors import SirtError


@dataclass(frozen=True, slots=True)
class Ended:
    """What has become of a cell."""

    cell: str
    student: str | None = None
    """The one that was kept last."""
    error: str | None = None
    """None: it is finished."""


@dataclass(frozen=True, slots=True)
class How:
    """How the cells of a study are run."""

    address: str | None
    """Of a Ray cluster; None: a Ray of our own."""
    needed: ResourcesConfig
    """By the cell that needs the most."""
    logs: Path
    redo: bool = False
    debug: bool = False


class CellRunner:
    """Runs cells on one Ray, which is joined when the first cell needs it, and anew after a
    failure: whatever went wrong there shall not be the next one's."""

    def __init__(self, study: Study, console: Console, how: How) -> None:
        self._study = study
        self._console = console
        self._how = how
        self._connection = ExitStack()
        self._connected = False
        self._last: running.Run | None = None

    def run(self, cell: Cell) -> Ended:
        run_dir, pool = self._study.folder / cell.name, self._study.pool
        made: running.Run | None = None
        try:
            finished = running.survey(cell.job, run_dir, pool).finished
            if not finished:
                self._connect()
            made = running.Run(
                cell.job,
                run_dir,
                self._console,
                redo=self._how.redo,
                pool=pool,
                after=None if finished else self._last,
            )
            if finished:
                outcome = made.loop().run()
            else:
                self._last = made
                outcome = made.on_cluster(keep_engines=True)
            made.finish(outcome)
        except Exception as error:  # whatever it was, the other cells are not part of it
            message = (
                str(error) if isinstance(error, SirtError) else f"{type(error).__name__}: {error}"
            )
            if self._how.debug:
                self._console.print_exception()
            if made is not None:
                made.journal.event("failed", message)
            self.disconnect()
            return Ended(cell.name, error=message)
        return Ended(cell.name, outcome.student.version)

    def _connect(self) -> None:
        if not self._connected:
            from sirt_ray.on_ray.cluster import connected

            self._connection.enter_context(
                connected(self._how.address, self._how.needed, self._how.logs)
            )
            self._connected = True

    def disconnect(self) -> None:
        """Stop the engines and leave Ray."""
        if self._last is not None:
            self._last.stages.close()
        self._last, self._connected = None, False
        self._connection.close()


def one_by_one(study: Study, console: Console, how: How) -> Iterator[Ended]:
    runner = CellRunner(study, console, how)
    try:
        for number, cell in enumerate(study.cells, start=1):
            console.rule(f"{number} of {len(study.cells)}: {cell.name}", align="left")
            yield runner.run(cell)
    finally:
        runner.disconnect()
