"""`sirt run` and `sirt plan` of a study: its trials, and once what they share."""

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
    """Run what is missing. A trial that fails is reported and the others go on; returns 1 if one
    failed."""
    console = run_console()
    study = _checked(arguments, None)
    if arguments.dry_run:
        study_plan.show_study(console, study)
        running.print_code(console, study.jobs)
        return 0
    user_code.refuse_unallowed(reference for job in study.jobs for reference in job.code)
    running.print_code(console, study.jobs)
    plans = [running.dry_run(t.job, study.folder / t.name, study.shared_dir) for t in study.trials]
    if not arguments.force:
        for plan in plans:
            plan.raise_if_stale()
    missing = sum(not plan.finished for plan in plans)
    failures: dict[str, str] = {}
    with (
        running.run_folder(study.folder),
        locked(study.folder),
        closing(_run_trials(study, missing, console, arguments)) as results,
    ):
        states = _states(study)
        for result in results:
            state = states["cells"][result.trial]
            if result.error is None:
                state |= {"state": "finished", "student": result.student, "error": None}
            else:
                failures[result.trial] = result.error
                state |= {"state": "failed", "error": result.error}
            write_json(study.folder / STATES, states)
    done = len(study.trials) - len(failures)
    console.print(f"\n{done} of {len(study.trials)} trials are finished: {study.folder}")
    for name, message in failures.items():
        console.print(f"[bold red]failed:[/] {name}: {escape(message)}", soft_wrap=True)
    return 1 if failures else 0


def _run_trials(
    study: Study, missing: int, console: Console, arguments: argparse.Namespace
) -> Generator[TrialResult]:
    """Run the trials on a local Ray or a cluster, as many at once as `--trials` says, or as fit.
    `missing`: the number of trials that are not finished."""
    from sirt_ray.on_ray.cluster import connected, largest, runs_that_fit

    needed, logs = largest(job.resources for job in study.jobs), study.folder / "logs"
    options = RunOptions(arguments.address, needed, logs, arguments.force, arguments.debug)
    if missing and arguments.address is not None:
        with connected(arguments.address, needed, logs):
            running.delete_stale_apps(study.jobs)
    if missing < 2 or arguments.trials == 1:
        yield from run_sequentially(study, console, options)
        return
    at_once = min(missing, arguments.trials or runs_that_fit(arguments.address, needed, logs))
    if at_once == 1:
        yield from run_sequentially(study, console, options)
        return
    console.print(f"{at_once} trials at once")
    with connected(arguments.address, needed, logs, at_once) as address:
        yield from run_in_parallel(study, replace(options, address=address), at_once)


def _checked(arguments: argparse.Namespace, unchecked: list[str] | None) -> Study:
    """The study, after every check that costs no more than reading; all problems in one error."""
    from sirt_ray.driver.checks import check_inputs

    study = studies.load(arguments.job, arguments.overrides, REGISTRY)
    running.check_each(study.jobs, lambda job: check_inputs(job, unchecked))
    return study


def _states(study: Study) -> dict[str, Any]:
    """Write and return the content of `study.json` before the trials run. States of an earlier
    call, perhaps with other trials, are kept."""
    path = study.folder / STATES
    known: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}
    missing: dict[str, Any] = {"state": "missing", "student": None, "error": None}
    trials = {
        trial.name: {**missing, **known.get(trial.name, {}), "labels": dict(trial.labels)}
        for trial in study.trials
    }
    states = {
        "study": study.name,
        "axes": {axis: list(labels) for axis, labels in study.axes.items()},
        "cells": known | trials,
    }
    write_json(path, states)
    return states
