"""The `sirt` command: parse, wire, print. It decides nothing. `ending.py` has the exit codes."""

import argparse
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from sirt_ray import (
    cluster_command,
    doctor_command,
    evaluate_command,
    export_command,
    jobfile,
    plan_command,
    report_command,
    storage,
    studies,
    submit_command,
)
from sirt_ray.arguments import SERVE_PORT, add_debug, add_job, add_redo
from sirt_ray.benchmarks import grading
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import JobConfig
from sirt_ray.ending import ended
from sirt_ray.errors import SirtError
from sirt_ray.folder_lock import locked
from sirt_ray.resources import EngineConfig, ResourcesConfig
from sirt_ray.survey import Survey

SERVE_EXAMPLES = """\
examples:
  sirt serve runs/quickstart                     # the student that the run has kept last
  sirt serve quickstart:student --port 8080
  SIRT_API_KEY=... sirt serve runs/mine --host 0.0.0.0
  sirt serve runs/mine --address auto --set max_replicas=4 --set max_model_len=2048
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    return ended(lambda: arguments.command(arguments), arguments.debug, arguments.stopped)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sirt", description="A large model's reasoning for a small one: Self-refine on Ray."
    )
    parser.set_defaults(
        stopped="stopped. What is finished is kept; the same command continues where it was"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a job or a study, or what is left of it")
    add_job(run)
    add_debug(run)
    run.add_argument("--address", help="a Ray cluster to run on (default: one on this machine)")
    run.add_argument(
        "--cells",
        type=_count,
        metavar="N",
        help="of a study: cells at the same time (default: as many as the cluster has room for)",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan, start nothing"
    )
    add_redo(run)
    run.set_defaults(command=_run)

    plan = commands.add_parser(
        "plan", help="print what a job would do and all its settings, or what a study would do"
    )
    add_job(plan)
    add_debug(plan)
    plan_command.add_cluster(plan)
    plan.set_defaults(command=_plan)
    evaluate_command.add_to(commands)
    submit_command.add_to(commands)
    cluster_command.add_to(commands)
    _add_serve(commands)
    report_command.add_to(commands)
    export_command.add_to(commands)
    doctor_command.add_to(commands)
    grading.add_command(commands)
    return parser


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a run's student, or any model, as an OpenAI-compatible endpoint",
        description="Serve a model as an OpenAI-compatible endpoint until Ctrl-C.",
        epilog=SERVE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument(
        "model",
        metavar="MODEL|RUN_DIR",
        help="a run's folder (its last kept student), a model's folder, a name on the hub, or"
        " quickstart:student",
    )
    serve.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    serve.add_argument("--port", type=_port, default=SERVE_PORT, help="(default: %(default)s)")
    serve.add_argument(
        "--api-key-env",
        metavar="VARIABLE",
        help="the environment variable with the key that clients must send (default: SIRT_API_KEY;"
        " without it, no key is asked for)",
    )
    serve.add_argument("--name", help="what clients call the model (default: the run's or model's)")
    serve.add_argument("--address", help="a Ray cluster to run on (default: one on this machine)")
    serve.add_argument(
        "--set",
        action="append",
        default=[],
        dest="options",
        metavar="field=value",
        help="one field of the engine, as under `resources.student` in a job file:"
        f" {', '.join(EngineConfig.model_fields)}; may be repeated",
    )
    add_debug(serve)
    serve.set_defaults(command=_serve, stopped="stopped")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} is too few. Give 1 or more")
    return count


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 1 << 16:
        raise argparse.ArgumentTypeError(f"{port} is no port. Give one from 1 to 65535")
    return port


def _run(arguments: argparse.Namespace) -> int:
    from sirt_ray import running, study_command
    from sirt_ray.on_ray.cluster import connected
    from sirt_ray.report.journal import run_console

    if studies.is_study(arguments.job):
        return study_command.run(arguments)
    job = _checked(arguments)
    run_dir = job.run_dir
    survey = running.survey(job, run_dir)
    if arguments.dry_run:
        _print_plan(Console(), run_dir, survey)
        return 0
    console = run_console()
    if not arguments.redo:
        survey.refuse_untrue()
    with running.run_folder(run_dir), locked(run_dir):
        run = running.Run(job, run_dir, console, redo=arguments.redo)
        if survey.finished:
            outcome = run.loop().run()
        else:
            with connected(arguments.address, job.resources, run_dir / "logs"):
                running.remove_left_behind([job])
                outcome = run.on_cluster()
        run.finish(outcome)
    console.print(f"The refined student is {outcome.student.path}", soft_wrap=True)
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from sirt_ray.on_ray.api_key import open_host_warning, take_key
    from sirt_ray.on_ray.checks import check_model
    from sirt_ray.on_ray.door import Door
    from sirt_ray.on_ray.served_model import find_model

    console = Console()
    door = Door(arguments.host, arguments.port)
    if arguments.address is None:
        door.refuse_taken()
    key = take_key(arguments.api_key_env)
    model = find_model(arguments.model, arguments.name, arguments.options)
    check_model(arguments.model, model.path)
    warning = open_host_warning(door.host, key)
    if warning is not None:
        Console(stderr=True).print(f"[bold red]warning:[/] {escape(warning)}", soft_wrap=True)

    from sirt_ray.on_ray.cluster import connected
    from sirt_ray.on_ray.openai_server import opened

    tell = partial(console.print, soft_wrap=True, markup=False, highlight=False)
    say = partial(tell, style="dim")
    say(f"Starting {model.path}: half a minute, with a large model some minutes")
    began, logs = time.monotonic(), Path(tempfile.mkdtemp(prefix="sirt-serve-"))
    try:
        with (
            connected(arguments.address, ResourcesConfig(student=model.engine), logs),
            opened(model, door, key, arguments.address, say) as endpoint,
        ):
            say(f"Ready after {time.monotonic() - began:.0f} s; Ctrl-C stops it")
            tell(f"{model.name} is served at {door.url}, {endpoint.max_model_len:,} tokens at most")
            tell(door.example(model.name, key and key.variable))
            endpoint.watch(say)
    except SirtError:
        say(f"The log is in {logs}")
        raise
    except KeyboardInterrupt:
        shutil.rmtree(logs, ignore_errors=True)
        raise


def _plan(arguments: argparse.Namespace) -> int:
    from sirt_ray import running, study_command

    if studies.is_study(arguments.job):
        return study_command.plan(arguments)
    console = Console()
    unchecked: list[str] = []
    job = _checked(arguments, unchecked)
    console.print(jobfile.dump(job), markup=False, highlight=False)
    run_dir = job.run_dir
    survey = running.survey(job, run_dir)
    _print_plan(console, run_dir, survey)
    running.print_unchecked(console, unchecked)
    plan_command.show(console, arguments, [job], [(job, state) for state in survey.states])
    return 0


def _checked(arguments: argparse.Namespace, unchecked: list[str] | None = None) -> JobConfig:
    """The job, after every check that costs no more than reading. `unchecked` hears of what cannot
    be looked at from here, which is an error without it."""
    from sirt_ray.on_ray.checks import check_inputs

    job = jobfile.load(arguments.job, arguments.overrides, REGISTRY)
    check_inputs(job, unchecked)
    return job


def _print_plan(console: Console, run_dir: Path, survey: Survey) -> None:
    from sirt_ray.report.table import plan_table

    console.print(plan_table(survey.states))
    console.print(f"Run folder: {storage.place(run_dir.resolve())}", soft_wrap=True)
    survey.refuse_untrue()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
