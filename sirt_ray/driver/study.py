"""Run the trials of a study on one Ray cluster: sequentially, or several at once in processes of
their own.

A driver's connection to Ray belongs to its process, hence processes. Each runs trial after trial,
so that engines stay up from one to the next, and prefixes its lines with the trial's name. What two
trials share is built by the first that comes to it (`artifacts.store.Store`, `shared_dir`).
"""

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
from sirt_ray.driver import run as driver
from sirt_ray.errors import SirtError
from sirt_ray.logs import as_json


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How a trial ended."""

    trial: str
    student: str | None = None
    """The version that was kept last."""
    error: str | None = None
    """None if the trial is finished."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of `sirt run` that every trial of a study runs with."""

    address: str | None
    """The Ray cluster's; None: a local Ray that is started for the study."""
    resources: ResourcesConfig
    """Those of the trial that needs the most."""
    logs: Path
    force: bool = False
    debug: bool = False


class TrialRunner:
    """Runs trials on one Ray cluster. It connects when the first trial needs the cluster, and
    reconnects after a failure, so that a broken connection fails only one trial."""

    def __init__(self, study: Study, console: Console, options: RunOptions) -> None:
        self._study = study
        self._console = console
        self._options = options
        self._connection = ExitStack()
        self._connected = False
        self._last: driver.Run | None = None

    def run(self, trial: Trial) -> TrialResult:
        run_dir, shared_dir = self._study.folder / trial.name, self._study.shared_dir
        run: driver.Run | None = None
        try:
            finished = driver.dry_run(trial.job, run_dir, shared_dir).finished
            if not finished:
                self._connect()
            run = driver.Run(
                trial.job,
                run_dir,
                self._console,
                force=self._options.force,
                shared_dir=shared_dir,
                previous=None if finished else self._last,
            )
            if finished:
                outcome = run.loop()
            else:
                self._last = run
                outcome = run.on_cluster(keep_engines=True)
            run.finish(outcome)
        except Exception as error:  # of any kind: the other trials do not depend on this one
            message = (
                str(error) if isinstance(error, SirtError) else f"{type(error).__name__}: {error}"
            )
            if self._options.debug:
                self._console.print_exception()
            if run is not None:
                run.journal.event("failed", message)
            self.disconnect()
            return TrialResult(trial.name, error=message)
        return TrialResult(trial.name, outcome.student.version)

    def _connect(self) -> None:
        if not self._connected:
            from sirt_ray.on_ray.cluster import connected

            options = self._options
            self._connection.enter_context(
                connected(options.address, options.resources, options.logs)
            )
            self._connected = True

    def disconnect(self) -> None:
        """Stop the engines and disconnect from Ray."""
        if self._last is not None:
            self._last.stages.close()
        self._last, self._connected = None, False
        self._connection.close()


def run_sequentially(study: Study, console: Console, options: RunOptions) -> Iterator[TrialResult]:
    """Run the trials one after the other in this process."""
    runner = TrialRunner(study, console, options)
    try:
        for number, trial in enumerate(study.trials, start=1):
            console.rule(f"{number} of {len(study.trials)}: {trial.name}", align="left")
            yield runner.run(trial)
    finally:
        runner.disconnect()


def run_in_parallel(study: Study, options: RunOptions, num_workers: int) -> Generator[TrialResult]:
    """Run the trials in `num_workers` processes, and yield each result when its trial has ended. A
    process that dies fails its trial and no other. Waits for all processes to stop their engines,
    also when the caller is interrupted."""
    queue = list(reversed(study.trials))
    running: dict[Connection, tuple[SpawnProcess, Trial]] = {}
    try:
        for _ in range(min(num_workers, len(queue))):
            connection, process = _start_worker(study, options)
            running[connection] = process, queue.pop()
            connection.send(running[connection][1])
        while running:
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                process, trial = running.pop(connection)
                try:
                    result: TrialResult = connection.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    error = f"its process died with exit code {process.exitcode}"
                    result = TrialResult(trial.name, error=error)
                    if queue:
                        connection, process = _start_worker(study, options)
                else:
                    if not queue:
                        connection.send(None)
                        process.join()
                if queue:
                    running[connection] = process, queue.pop()
                    connection.send(running[connection][1])
                yield result
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _start_worker(study: Study, options: RunOptions) -> tuple[Connection, SpawnProcess]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_work, args=(theirs, replace(study, trials=()), options))
    process.start()
    theirs.close()
    return ours, process


def _work(trials: Connection, study: Study, options: RunOptions) -> None:
    """Run the trials that arrive on the connection, until None arrives."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the driver decides.
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lines = _PrefixedLines()
    console = Console(file=cast(IO[str], lines), width=100, quiet=as_json())
    runner = TrialRunner(study, console, options)
    try:
        while (trial := trials.recv()) is not None:
            lines.prefix = f"{trial.name} | "
            trials.send(runner.run(trial))
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
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Once: engines are being stopped.
    raise KeyboardInterrupt


class _PrefixedLines(io.TextIOBase):
    """Standard output, whole lines only, each with the same prefix."""

    def __init__(self) -> None:
        self.prefix = ""
        self._unfinished = ""

    def write(self, text: str) -> int:
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        sys.stdout.write("".join(f"{self.prefix}{line}\n" for line in lines))
        sys.stdout.flush()
        return len(text)
