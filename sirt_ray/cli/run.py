"""`sirt run`: a job or a study, or what is left of it."""

import argparse

from rich.console import Console

from sirt_ray import user_code
from sirt_ray.artifacts.locks import locked
from sirt_ray.artifacts.store import DryRun
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.cli.options import add_allow_code, add_debug, add_force, add_job, examples
from sirt_ray.config import load
from sirt_ray.config import study as studies
from sirt_ray.config.job import JobConfig
from sirt_ray.storage import object_store

EXAMPLES = """\
examples:
  sirt run jobs/quickstart.yaml                  # the same command again resumes it
  sirt run jobs/quickstart.yaml --set name=wider --set refine.num_cot=16
  sirt run jobs/own_task.yaml --allow-code
  sirt run jobs/study_quickstart.yaml --trials 2
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = commands.add_parser(
        "run", help="run a job or a study, or what is left of it", **examples(EXAMPLES)
    )
    add_job(run)
    add_debug(run)
    run.add_argument("--address", help="a Ray cluster to run on (default: one on this machine)")
    run.add_argument(
        "--trials",
        "--cells",
        type=_count,
        metavar="N",
        help="of a study: trials at the same time (default: as many as fit on the cluster)",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan, start nothing"
    )
    add_force(run)
    add_allow_code(run)
    run.set_defaults(command=_run)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} is too few. Give 1 or more")
    return count


def _run(arguments: argparse.Namespace) -> int:
    from sirt_ray.cli import study as study_command
    from sirt_ray.driver import run as running
    from sirt_ray.on_ray.cluster import connected
    from sirt_ray.report.journal import run_console

    if studies.is_study(arguments.job):
        return study_command.run(arguments)
    job = checked(arguments)
    run_dir = job.run_dir
    planned = running.dry_run(job, run_dir)
    if arguments.dry_run:
        print_plan(Console(), job, planned)
        return 0
    user_code.refuse_unallowed(job.code)
    console = run_console()
    running.print_code(console, [job])
    if not arguments.force:
        planned.raise_if_stale()
    with running.run_folder(run_dir), locked(run_dir):
        run = running.Run(job, run_dir, console, force=arguments.force)
        if planned.finished:
            outcome = run.loop()
        else:
            with connected(arguments.address, job.resources, run_dir / "logs"):
                running.delete_stale_apps([job])
                outcome = run.on_cluster()
        run.finish(outcome)
    console.print(f"The refined student is {outcome.student.path}", soft_wrap=True)
    return 0


def checked(arguments: argparse.Namespace, unchecked: list[str] | None = None) -> JobConfig:
    """Load the job and run every check that costs no more than reading. `unchecked` collects what
    cannot be checked from this machine, which is an error without it."""
    from sirt_ray.driver.checks import check_inputs

    job = load.load(arguments.job, arguments.overrides, REGISTRY)
    check_inputs(job, unchecked)
    return job


def print_plan(console: Console, job: JobConfig, planned: DryRun) -> None:
    from sirt_ray.driver import run as running
    from sirt_ray.driver.placement_table import plan_table

    console.print(plan_table(planned.statuses))
    console.print(f"Run folder: {object_store.to_uri(job.run_dir.resolve())}", soft_wrap=True)
    running.print_code(console, [job])
    planned.raise_if_stale()
