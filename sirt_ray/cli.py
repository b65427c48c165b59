"""The `sirt` command: parse, wire, print. It decides nothing.

Exit codes: 0; 2 for a bad job file, bad arguments or bad input data; 1 for a failure while running;
130 after Ctrl-C.
"""

import argparse
import shutil
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from sirt_ray import jobfile
from sirt_ray.artifacts import Store, Survey, locked
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import JobConfig
from sirt_ray.core.loop import Loop
from sirt_ray.errors import InputError, SirtError


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return arguments.command(arguments)
    except SirtError as error:
        if arguments.debug:
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "\nstopped. What is finished is kept; the same command continues where it was"
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sirt", description="A large model's reasoning for a small one: Self-refine on Ray."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a job, or what is left of it")
    _add_job(run)
    run.add_argument("--address", help="a Ray cluster to run on (default: one on this machine)")
    run.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan, start nothing"
    )
    run.add_argument(
        "--redo",
        action="store_true",
        help="delete and build again what the job's settings have made untrue",
    )
    run.set_defaults(command=_run)

    plan = commands.add_parser("plan", help="print what a job would do, and all its settings")
    _add_job(plan)
    plan.set_defaults(command=_plan)
    return parser


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="a.b=value",
        help="override one setting of the job; may be repeated",
    )
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")


def _run(arguments: argparse.Namespace) -> int:
    from sirt_ray.on_ray.cluster import connected
    from sirt_ray.on_ray.stages import RayStages
    from sirt_ray.report.journal import RunJournal
    from sirt_ray.report.progress import progress_for
    from sirt_ray.report.table import scores_tables

    console = Console()
    job, run_dir, survey = _checked(arguments)
    if arguments.dry_run:
        _print_plan(console, job, run_dir, survey)
        return 0
    if not arguments.redo:
        survey.refuse_untrue()
    with _run_folder(run_dir), locked(run_dir):
        (run_dir / "config.yaml").write_text(jobfile.dump(job))
        journal = RunJournal(run_dir, console)
        store = Store(run_dir, redo=arguments.redo, tell=journal.artifact)
        say = partial(console.print, soft_wrap=True, style="dim", markup=False, highlight=False)
        stages = RayStages(job, run_dir, progress_for(console), say)
        loop = Loop(job, stages, store, journal)
        if survey.finished:
            outcome = loop.run()
        else:
            with connected(arguments.address, job.resources, run_dir / "logs"):
                try:
                    outcome = loop.run()
                finally:
                    stages.close()
        journal.finish(outcome.scores)
    for table in scores_tables(outcome.scores, job.data.train, outcome.rolled_back):
        console.print()
        console.print(table)
    console.print(f"The refined student is {outcome.student.path}", soft_wrap=True)
    return 0


@contextmanager
def _run_folder(run_dir: Path) -> Generator[None]:
    """Leave no run folder behind where the input turns out to be wrong before anything is made."""
    existed = run_dir.exists()
    try:
        yield
    except InputError:
        if not existed and not any(run_dir.glob("**/record.json")):
            shutil.rmtree(run_dir, ignore_errors=True)
        raise


def _plan(arguments: argparse.Namespace) -> int:
    console = Console()
    job, run_dir, survey = _checked(arguments)
    console.print(jobfile.dump(job), markup=False, highlight=False)
    _print_plan(console, job, run_dir, survey)
    return 0


def _checked(arguments: argparse.Namespace) -> tuple[JobConfig, Path, Survey]:
    """The job, after every check that costs no more than reading, and how its folder stands."""
    from sirt_ray.on_ray.checks import check_inputs
    from sirt_ray.on_ray.stages import RayStages
    from sirt_ray.report.journal import SILENT
    from sirt_ray.report.progress import LogProgress

    job = jobfile.load(arguments.job, arguments.overrides, REGISTRY)
    check_inputs(job)
    run_dir = Path(job.output) / job.name
    survey = Survey(run_dir)
    nobody = Console(quiet=True)
    Loop(job, RayStages(job, run_dir, LogProgress(nobody), nobody.print), survey, SILENT).run()
    return job, run_dir, survey


def _print_plan(console: Console, job: JobConfig, run_dir: Path, survey: Survey) -> None:
    from sirt_ray.report.table import plan_table

    console.print(plan_table(survey.states))
    console.print(f"Run folder: {run_dir.resolve()}", soft_wrap=True)
    survey.refuse_untrue()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
