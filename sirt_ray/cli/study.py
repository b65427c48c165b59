"""`sirt run` and `sirt plan` of a study: its cells, and once what they share."""

import argparse
import json
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape

from sirt_ray import user_code
from sirt_ray.artifacts.locks import locked
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.cli import plan as plan_command
from sirt_ray.config import study as studies
from sirt_ray.config.study import STATES, Study
from sirt_ray.driver import plan as study_plan
from sirt_ray.driver import run as running
from sirt_ray.driver.study import RunOptions, TrialResult, run_in_parallel, run_sequentially
from sirt_ray.report.journal import run_console
from sirt_ray.storage.atomic import write_json


def plan(arguments: argparse.Namespace) -> int:
    console = Console()
    unchecked: list[str] = []
    study = _checked(arguments, unchecked)
    plan_command.print_base_files(console, arguments.job)
    artifacts = study_plan.show_study(console, study)
    running.print_code(console, study.jobs)
    running.print_unchecked(console, unchecked)
    plan_command.show(console, arguments, study.jobs, list(artifacts.values()))
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing. A cell that fails is told of and the others go on; 1 where one did."""
    console = run_console()
    study = _checked(arguments, None)
    if arguments.dry_run:
        study_plan.show_study(console, study)
        running.print_code(console, study.jobs)
        return 0
    user_code.refuse_unallowed(reference for job in study.jobs for reference in job.code)
    running.print_code(console, study.jobs)
    surveys = [running.dry_run(c.job, study.folder / c.name, study.pool) for c in study.trials]
    if not arguments.force:
        for survey in surveys:
            survey.raise_if_stale()
    missing = sum(not survey.finished for survey in surveys)
    failures: dict[str, str] = {}
    with (
        running.run_folder(study.folder),
        locked(study.folder),
        closing(_run_cells(study, missing, console, arguments)) as each,
    ):
        states = _states(study)
        for ended in each:
            state = states["cells"][ended.cell]
            if ended.error is None:
                state |= {"state": "finished", "student": ended.student, "error": None}
            else:
                failures[ended.cell] = ended.error
                state |= {"state": "failed", "error": ended.error}
            write_json(study.folder / STATES, states)
    done = len(study.trials) - len(failures)
    console.print(f"\n{done} of {len(study.trials)} cells are finished: {study.folder}")
    for name, message in failures.items():
        console.print(f"[bold red]failed:[/] {name}: {escape(message)}", soft_wrap=True)
    return 1 if failures else 0


def _run_cells(
    study: Study, missing: int, console: Console, arguments: argparse.Namespace
) -> Generator[TrialResult]:
    """On a Ray of our own or a cluster, as many cells at once as were asked for, or as fit.
    `missing`: cells that are not finished."""
    from sirt_ray.on_ray.cluster import connected, largest, runs_that_fit

    needed, logs = largest(job.resources for job in study.jobs), study.folder / "logs"
    how = RunOptions(arguments.address, needed, logs, arguments.force, arguments.debug)
    if missing and arguments.address is not None:
        with connected(arguments.address, needed, logs):
            running.remove_left_behind(study.jobs)
    if missing < 2 or arguments.cells == 1:
        yield from run_sequentially(study, console, how)
        return
    at_once = min(missing, arguments.cells or runs_that_fit(arguments.address, needed, logs))
    if at_once == 1:
        yield from run_sequentially(study, console, how)
        return
    console.print(f"{at_once} cells at once")
    with connected(arguments.address, needed, logs, at_once) as address:
        yield from run_in_parallel(study, replace(how, address=address), at_once)


def _checked(arguments: argparse.Namespace, unchecked: list[str] | None) -> Study:
    """The study, after every check that costs no more than reading; all problems in one error."""
    from sirt_ray.driver.checks import check_inputs

    study = studies.load(arguments.job, arguments.overrides, REGISTRY)
    running.check_each(study.jobs, lambda job: check_inputs(job, unchecked))
    return study


def _states(study: Study) -> dict[str, Any]:
    """What `study.json` says before the cells run; what an earlier call, perhaps with other cells,
    said of one stands."""
    path = study.folder / STATES
    known: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}
    missing: dict[str, Any] = {"state": "missing", "student": None, "error": None}
    cells = {
        cell.name: {**missing, **known.get(cell.name, {}), "labels": dict(cell.labels)}
        for cell in study.trials
    }
    states = {
        "study": study.name,
        "axes": {axis: list(labels) for axis, labels in study.axes.items()},
        "cells": known | cells,
    }
    write_json(path, states)
    return states
