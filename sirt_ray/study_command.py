"""`sirt run` and `sirt plan` of a study: its cells one after the other, what they share once."""

import argparse
import json
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.markup import escape

from sirt_ray import running, studies, study_plan
from sirt_ray.artifacts import write_json
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import JobConfig
from sirt_ray.errors import ConfigError, InputError, SirtError
from sirt_ray.folder_lock import locked
from sirt_ray.studies import Cell, Study

STATES = "study.json"
"""Axes, and each cell's labels, state (`missing`, `finished` or `failed`), student that was kept
last, and error."""


def plan(arguments: argparse.Namespace) -> int:
    console = Console()
    unchecked: list[str] = []
    study = _checked(arguments, unchecked)
    study_plan.show(console, study)
    running.print_unchecked(console, unchecked)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing. A cell that fails is told of and the others go on; 1 where one did."""
    console = Console()
    study = _checked(arguments, None)
    if arguments.dry_run:
        study_plan.show(console, study)
        return 0
    if not arguments.redo:
        for cell in study.cells:
            running.survey(cell.job, study.folder / cell.name, study.pool).refuse_untrue()
    with running.run_folder(study.folder), locked(study.folder):
        runner = _Runner(study, console, arguments)
        try:
            for number, cell in enumerate(study.cells, start=1):
                console.rule(f"{number} of {len(study.cells)}: {cell.name}", align="left")
                runner.run(cell)
        finally:
            runner.disconnect()
    failures = runner.failures
    done = len(study.cells) - len(failures)
    console.print(f"\n{done} of {len(study.cells)} cells are finished: {study.folder}")
    for name, message in failures.items():
        console.print(f"[bold red]failed:[/] {name}: {escape(message)}", soft_wrap=True)
    return 1 if failures else 0


class _Runner:
    """Runs cells on one Ray, which is started when the first cell needs it, and anew after a
    failure: whatever went wrong there shall not be the next one's."""

    def __init__(self, study: Study, console: Console, arguments: argparse.Namespace) -> None:
        self._study = study
        self._console = console
        self._arguments = arguments
        self._connection = ExitStack()
        self._connected = False
        self._last: running.Run | None = None
        self._states = _states(study)
        self.failures: dict[str, str] = {}

    def run(self, cell: Cell) -> None:
        run_dir, pool = self._study.folder / cell.name, self._study.pool
        state = self._states["cells"][cell.name]
        made: running.Run | None = None
        try:
            finished = running.survey(cell.job, run_dir, pool).finished
            if not finished:
                self._connect(cell.job)
            made = running.Run(
                cell.job,
                run_dir,
                self._console,
                redo=self._arguments.redo,
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
            self.failures[cell.name] = message
            state |= {"state": "failed", "error": message}
            if self._arguments.debug:
                self._console.print_exception()
            if made is not None:
                made.journal.event("failed", message)
            self.disconnect()
        else:
            state |= {"state": "finished", "student": outcome.student.version, "error": None}
        write_json(self._study.folder / STATES, self._states)

    def _connect(self, job: JobConfig) -> None:
        if not self._connected:
            from sirt_ray.on_ray.cluster import connected, largest

            resources = largest(cell.job.resources for cell in self._study.cells)
            logs = self._study.folder / "logs"
            self._connection.enter_context(connected(self._arguments.address, resources, logs))
            self._connected = True

    def disconnect(self) -> None:
        """Stop the engines and leave Ray."""
        if self._last is not None:
            self._last.stages.close()
        self._last, self._connected = None, False
        self._connection.close()


def _checked(arguments: argparse.Namespace, unchecked: list[str] | None) -> Study:
    """The study, after every check that costs no more than reading; all problems in one error."""
    from sirt_ray.on_ray.checks import check_inputs

    study = studies.load(arguments.job, arguments.overrides, REGISTRY)
    problems: dict[str, None] = {}
    seen: set[str] = set()
    for cell in study.cells:
        looked_at = cell.job.model_dump_json(include={"data", "teacher", "student"})
        if looked_at in seen:
            continue
        seen.add(looked_at)
        try:
            check_inputs(cell.job, unchecked)
        except InputError as error:
            problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        raise ConfigError("\n".join(problems))
    return study


def _states(study: Study) -> dict[str, Any]:
    """What `study.json` says before the cells run; what an earlier call, perhaps with other cells,
    said of one stands."""
    path = study.folder / STATES
    known: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}
    missing: dict[str, Any] = {"state": "missing", "student": None, "error": None}
    cells = {
        cell.name: {**missing, **known.get(cell.name, {}), "labels": dict(cell.labels)}
        for cell in study.cells
    }
    states = {
        "study": study.name,
        "axes": {axis: list(labels) for axis, labels in study.axes.items()},
        "cells": known | cells,
    }
    write_json(path, states)
    return states
