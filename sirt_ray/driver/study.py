"""The cells of a study, one after the other on one Ray; several at once are in `side_by_side`."""

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import IO, cast

from rich.console import Console

from sirt_ray.config.resources import ResourcesConfig
from sirt_ray.config.study import Study, Trial
from sirt_ray.driver import run as running
from sirt_ray.errors import SirtError
from sirt_ray.logs import as_json


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What has become of a cell."""

    cell: str
    student: str | None = None
    """The one that was kept last."""
    error: str | None = None
    """None: it is finished."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the cells of a study are run."""

    address: str | None
    """Of a Ray cluster; None: a Ray of our own."""
    needed: ResourcesConfig
    """By the cell that needs the most."""
    logs: Path
    redo: bool = False
    debug: bool = False


class TrialRunner:
    """Runs cells on one Ray, which is joined when the first cell needs it, and anew after a
    failure: whatever went wrong there shall not be the next one's."""

    def __init__(self, study: Study, console: Console, how: RunOptions) -> None:
        self._study = study
        self._console = console
        self._how = how
        self._connection = ExitStack()
        self._connected = False
        self._last: running.Run | None = None

    def run(self, cell: Trial) -> TrialResult:
        run_dir, pool = self._study.folder / cell.name, self._study.pool
        made: running.Run | None = None
        try:
            finished = running.dry_run(cell.job, run_dir, pool).finished
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
            return TrialResult(cell.name, error=message)
        return TrialResult(cell.name, outcome.student.version)

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


def run_sequentially(study: Study, console: Console, how: RunOptions) -> Iterator[TrialResult]:
    runner = TrialRunner(study, console, how)
    try:
        for number, cell in enumerate(study.trials, start=1):
            console.rule(f"{number} of {len(study.trials)}: {cell.name}", align="left")
            yield runner.run(cell)
    finally:
        runner.disconnect()


# FOLDED side_by_side: Cells of a study at the same time, each in a process of its own, on one Ray.
#
# A driver's connection to Ray is its process's, hence processes. Each runs cell after cell, so that
# engines go on from one to the next, and its lines begin with the cell's name. What two cells both
# need is made by the first that comes to it (`pool.SharedStore`).


def run_in_parallel(study: Study, how: RunOptions, at_once: int) -> Generator[TrialResult]:
    """Run the cells, so many at once, and tell of each when it has ended. A process that dies takes
    its cell with it and no other. Waits for all processes to stop their engines, also when the
    caller is interrupted."""
    left = list(reversed(study.trials))
    working: dict[Connection, tuple[SpawnProcess, Trial]] = {}
    try:
        for _ in range(min(at_once, len(left))):
            connection, process = _started(study, how)
            working[connection] = process, left.pop()
            connection.send(working[connection][1])
        while working:
            for connection in wait(list(working)):
                assert isinstance(connection, Connection)
                process, cell = working.pop(connection)
                try:
                    ended: TrialResult = connection.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    error = f"its process died with exit code {process.exitcode}"
                    ended = TrialResult(cell.name, error=error)
                    if left:
                        connection, process = _started(study, how)
                else:
                    if not left:
                        connection.send(None)
                        process.join()
                if left:
                    working[connection] = process, left.pop()
                    connection.send(working[connection][1])
                yield ended
    finally:
        for process, _ in working.values():
            process.terminate()
        for process, _ in working.values():
            process.join()


def _started(study: Study, how: RunOptions) -> tuple[Connection, SpawnProcess]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_work, args=(theirs, replace(study, cells=()), how))
    process.start()
    theirs.close()
    return ours, process


def _work(cells: Connection, study: Study, how: RunOptions) -> None:
    """What a process does until it is sent None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of us; the first one decides
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lines = _Lines()
    runner = TrialRunner(study, Console(file=cast(IO[str], lines), width=100, quiet=as_json()), how)
    try:
        while (cell := cells.recv()) is not None:
            lines.beginning = f"{cell.name} | "
            cells.send(runner.run(cell))
    except KeyboardInterrupt:
        pass
    finally:
        runner.disconnect()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: engines are being stopped
    raise KeyboardInterrupt


class _Lines(io.TextIOBase):
    """Standard output, whole lines only, each with the same beginning."""

    def __init__(self) -> None:
        self.beginning = ""
        self._unfinished = ""

    def write(self, text: str) -> int:
        *whole, self._unfinished = (self._unfinished + text).split("\n")
        sys.stdout.write("".join(f"{self.beginning}{line}\n" for line in whole))
        sys.stdout.flush()
        return len(text)
