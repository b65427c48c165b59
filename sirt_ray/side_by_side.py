"""Cells of a study at the same time, each in a process of its own, on one Ray.

A driver's connection to Ray is its process's, hence processes. Each runs cell after cell, so that
engines go on from one to the next, and its lines begin with the cell's name. What two cells both
need is made by the first that comes to it (`pool.SharedStore`).
"""

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import IO, cast

from rich.console import Console

from sirt_ray.config.study import Cell, Study
from sirt_ray.driver.study import CellRunner, Ended, How
from sirt_ray.logs import as_json


def side_by_side(study: Study, how: How, at_once: int) -> Generator[Ended]:
    """Run the cells, so many at once, and tell of each when it has ended. A process that dies takes
    its cell with it and no other. Waits for all processes to stop their engines, also when the
    caller is interrupted."""
    left = list(reversed(study.cells))
    working: dict[Connection, tuple[SpawnProcess, Cell]] = {}
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
                    ended: Ended = connection.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    error = f"its process died with exit code {process.exitcode}"
                    ended = Ended(cell.name, error=error)
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


def _started(study: Study, how: How) -> tuple[Connection, SpawnProcess]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_work, args=(theirs, replace(study, cells=()), how))
    process.start()
    theirs.close()
    return ours, process


def _work(cells: Connection, study: Study, how: How) -> None:
    """What a process does until it is sent None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of us; the first one decides
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lines = _Lines()
    runner = CellRunner(study, Console(file=cast(IO[str], lines), width=100, quiet=as_json()), how)
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
