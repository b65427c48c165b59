"""The `sirt` command: parse, wire, print. It decides nothing.

Exit codes: 0; 2 for a bad job file, bad arguments or bad input data; 1 for a failure while running;
130 after Ctrl-C.
"""

import argparse
import shutil
import signal
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from sirt_ray import jobfile
from sirt_ray.artifacts import Store, Survey, locked
from sirt_ray.benchmarks import grading
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import JobConfig
from sirt_ray.core.loop import Loop
from sirt_ray.errors import InputError, SirtError
from sirt_ray.resources import EngineConfig, ResourcesConfig

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
    try:
        return arguments.command(arguments)
    except SirtError as error:
        if arguments.debug:
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        Console(stderr=True).print(f"\n{arguments.stopped}")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sirt", description="A large model's reasoning for a small one: Self-refine on Ray."
    )
    parser.set_defaults(
        stopped="stopped. What is finished is kept; the same command continues where it was"
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
    _add_serve(commands)
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
    serve.add_argument("--port", type=_port, default=8000, help="(default: %(default)s)")
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
    serve.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    serve.set_defaults(command=_serve, stopped="stopped")


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 1 << 16:
        raise argparse.ArgumentTypeError(f"{port} is no port. Give one from 1 to 65535")
    return port


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
                stages.check_cluster()
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
