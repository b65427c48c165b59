"""`sirt submit`, `status`, `logs` and `stop`: runs on a remote Ray cluster."""

import argparse
import hashlib
import logging
import select
import shlex
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from sirt_ray import user_code
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.cli.options import add_allow_code, add_debug, add_force, add_job, examples
from sirt_ray.config import load
from sirt_ray.config import study as studies
from sirt_ray.config.job import JobConfig
from sirt_ray.driver import run as running
from sirt_ray.errors import ConfigError
from sirt_ray.report.journal import after_last_stage, last_stage
from sirt_ray.storage import object_store

if TYPE_CHECKING:  # These modules import Ray.
    from sirt_ray.on_ray.submit.client import Cluster, Submission, SubmittedRun
    from sirt_ray.on_ray.submit.logs import Report

SUBMIT_EXAMPLES = """\
examples:
  sirt submit jobs/mine.yaml --address http://HEAD:8265 --set output=/shared/runs
  sirt submit jobs/mine.yaml --detach          # the cluster that RAY_ADDRESS names
  sirt status                                  # all runs there
  sirt logs mine --follow
  sirt stop mine
"""
STATUS_EXAMPLES = """\
examples:
  sirt status --address http://HEAD:8265             # all runs there
  sirt status quickstart                             # on the cluster that RAY_ADDRESS names
"""
LOGS_EXAMPLES = """\
examples:
  sirt logs quickstart --address http://HEAD:8265
  sirt logs quickstart --follow                      # until the run ends
"""
STOP_EXAMPLES = """\
examples:
  sirt stop quickstart --address http://HEAD:8265
  sirt stop quickstart                               # on the cluster that RAY_ADDRESS names
"""
_ANSWER_SECONDS = 20.0
"""Time for the user to answer whether the run shall be stopped."""
_RESUBMIT_PAUSE_SECONDS = 5.0
"""From the loss of a driver's node to the next submission: Ray ends what is left of the driver."""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `sirt submit`, `status`, `logs` and `stop`."""
    submit = commands.add_parser(
        "submit",
        help="run a job or a study on a remote cluster",
        description="Submit a job to a cluster and show its progress. The same command again"
        " attaches to the job while it runs, and resumes it if it ended before it was finished.",
        **examples(SUBMIT_EXAMPLES),
    )
    add_job(submit)
    submit.add_argument(
        "--detach", action="store_true", help="return at once; the job runs on by itself"
    )
    submit.add_argument(
        "--installed",
        action="store_true",
        help="upload the job file only: the cluster's image has this version of sirt-ray",
    )
    submit.add_argument(
        "--resubmit", action="store_true", help="submit the job even if it is finished"
    )
    add_force(submit)
    add_allow_code(submit)
    submit.add_argument(
        "--retries",
        type=int,
        default=3,
        metavar="N",
        help="resubmit up to N times if the driver's node is lost (default: %(default)s)",
    )
    submit.set_defaults(command=_submit)
    _add_address(submit)
    status = commands.add_parser(
        "status", help="list the runs on a cluster and their stages", **examples(STATUS_EXAMPLES)
    )
    status.add_argument("run", nargs="?", metavar="RUN", help="(default: all)")
    status.set_defaults(command=_status, stopped="stopped")
    logs = commands.add_parser(
        "logs", help="print the log of a run on a cluster", **examples(LOGS_EXAMPLES)
    )
    logs.add_argument("run", metavar="RUN")
    logs.add_argument("--follow", action="store_true", help="until the run ends")
    logs.set_defaults(command=_logs, stopped="stopped; the run continues")
    stop = commands.add_parser(
        "stop",
        help="stop a run on a cluster; `sirt submit` resumes it later",
        **examples(STOP_EXAMPLES),
    )
    stop.add_argument("run", metavar="RUN")
    stop.set_defaults(command=_stop, stopped="stopped waiting; the run is being stopped")
    for parser in (status, logs, stop):
        _add_address(parser)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="URL of the cluster's dashboard, for example http://HEAD:8265"
        " (RAY_API_SERVER_ADDRESS and RAY_ADDRESS take precedence, as for `ray job`)",
    )
    add_debug(parser)


# sirt submit


def _submit(arguments: argparse.Namespace) -> int:
    from sirt_ray.driver.checks import check_for_cluster

    console = Console()
    jobs, run = _read(arguments)
    unchecked: list[str] = []
    running.check_each(jobs, lambda job: check_for_cluster(job, unchecked))
    code = [reference for job in jobs for reference in job.code]
    user_code.refuse_unallowed(code)
    running.print_code(console, jobs)
    running.print_unchecked(console, unchecked)
    cluster = _cluster(arguments)
    before = cluster.latest(run)
    if before is not None:
        exit_code = _finished_by(before, run, cluster, console, arguments)
        if exit_code is not None:
            return exit_code
    submission = _send(cluster, run, jobs, arguments)
    new = before is None or submission.number > before.number
    resumes = "" if before is None else " It resumes where the last submission ended."
    console.print(
        f"Submitted to {cluster.address} as {submission.id}.{resumes}"
        if new
        else f"{submission.id} runs already on {cluster.address} since {_start_time(submission)}",
        soft_wrap=True,
        highlight=False,
    )
    if arguments.detach:
        _print_commands(console, cluster, run)
        return 0
    while True:
        submission = _watch(cluster, submission, console)
        if not submission.node_lost or not arguments.retries:
            break
        arguments.retries -= 1
        console.print("The driver's node is lost; resubmitting the job", style="yellow")
        time.sleep(_RESUBMIT_PAUSE_SECONDS)
        submission = _send(cluster, run, jobs, arguments)
    return _exit_code(submission, console)


def _read(arguments: argparse.Namespace) -> "tuple[list[JobConfig], SubmittedRun]":
    """Return the jobs of the file, and the run that they are on a cluster."""
    from sirt_ray.on_ray.serve_apps import run_id
    from sirt_ray.on_ray.submit.client import SubmittedRun

    if studies.is_study(arguments.job):
        study = studies.load(arguments.job, arguments.overrides, REGISTRY)
        jobs, name, folder = study.jobs, study.name, study.folder
    else:
        job = load.load(arguments.job, arguments.overrides, REGISTRY)
        jobs, name, folder = [job], job.name, object_store.to_uri(job.run_dir)
    stated = [load.dump(job.with_code(user_code.identity)) for job in jobs]
    settings = hashlib.sha256("".join(stated).encode()).hexdigest()[:16]
    runs = tuple(run_id(job.run_dir) for job in jobs)
    return jobs, SubmittedRun(name, str(folder), settings, runs)


def _finished_by(
    before: "Submission",
    run: "SubmittedRun",
    cluster: "Cluster",
    console: Console,
    arguments: argparse.Namespace,
) -> int | None:
    """Return the exit code if the last submission has finished the run; None if there is something
    to submit. Raises ConfigError if a submission with other settings has not ended."""
    if not before.is_over:
        _check_same_settings(before, run)
    same = before.run.settings == run.settings
    if before.state == "SUCCEEDED" and same and not arguments.resubmit:
        console.print(f"{before.id} is finished; --resubmit submits it again", soft_wrap=True)
        console.print(after_last_stage(cluster.log(before.id)), markup=False, highlight=False)
        return 0
    return None


def _check_same_settings(submission: "Submission", run: "SubmittedRun") -> None:
    if submission.run.settings != run.settings:
        raise ConfigError(
            f"{submission.id} is running in {run.folder}, with other settings. Wait until it ends,"
            f" stop it with `sirt stop {run.name}`, or give this job another name"
        )


def _send(
    cluster: "Cluster",
    run: "SubmittedRun",
    jobs: Sequence[JobConfig],
    arguments: argparse.Namespace,
) -> "Submission":
    command = ["python", "-m", "sirt_ray", "run", arguments.job.name, "--address", "auto"]
    command += [part for text in arguments.overrides for part in ("--set", text)]
    command += ["--force"] if arguments.force else []
    files = [user_code.file_of(reference) for job in jobs for reference in job.code]
    command += ["--allow-code"] if files else []
    with _packed(arguments.job, not arguments.installed, files) as folder:
        sent = cluster.submit(run, folder, shlex.join(command), jobs[0].resources.driver)
    _check_same_settings(sent, run)  # Another user may have submitted first.
    return sent


def _watch(cluster: "Cluster", submission: "Submission", console: Console) -> "Submission":
    """Print the run's log until it ends. On Ctrl-C, prompt whether to stop the run, too."""
    from sirt_ray.on_ray.submit.logs import follow

    try:
        for text in follow(cluster, submission.id, _reporter(console)):
            _print_log(console, text)
    except KeyboardInterrupt:
        _prompt_to_stop(cluster, submission, console)
        raise
    return cluster.submission(submission.id)


def _prompt_to_stop(cluster: "Cluster", submission: "Submission", console: Console) -> None:
    """Ask whether to stop the run. Without an answer or a terminal it continues."""
    try:
        answer = ""
        if sys.stdin.isatty():
            console.print(f"\nStop {submission.id}, too? [y/N] ", end="", markup=False)
            if select.select([sys.stdin], [], [], _ANSWER_SECONDS)[0]:
                answer = sys.stdin.readline().strip().lower()
        if answer in ("y", "yes"):
            with _packed(None, True) as folder:
                cluster.stop(submission, folder, _reporter(console))
            console.print(f"{submission.id} is stopped; the same command resumes it")
            return
    except KeyboardInterrupt:
        pass
    console.print(
        f"\n{submission.id} is not stopped: it continues on the cluster.",
        soft_wrap=True,
        highlight=False,
    )
    _print_commands(console, cluster, submission.run)


def _exit_code(submission: "Submission", console: Console) -> int:
    """Print how a submission ended, and return the exit code: the driver's, if it has one."""
    if submission.state == "SUCCEEDED":
        return 0
    if submission.state == "STOPPED":
        console.print(f"{submission.id} was stopped; the same command resumes it")
        return 1
    reason = submission.message.partition("last available logs")[0].strip(" ,\n")
    console.print(f"[bold red]failed:[/] {submission.id}: ", end="")
    console.print(f"{reason}. The same command resumes it", markup=False, soft_wrap=True)
    return submission.exit_code if submission.exit_code in (1, 2) else 1


def _print_commands(console: Console, cluster: "Cluster", run: "SubmittedRun") -> None:
    for command in ("status", "logs", "stop"):
        more = " --follow" if command == "logs" else ""
        console.print(
            f"  sirt {command} {run.name} --address {cluster.address}{more}",
            soft_wrap=True,
            highlight=False,
        )


# sirt status, logs and stop


def _status(arguments: argparse.Namespace) -> int:
    cluster, console = _cluster(arguments), Console()
    found = _latest_of_each(cluster.submissions())
    shown = found if arguments.run is None else [_find(found, arguments.run, cluster)]
    if not shown:
        console.print(f"There are no runs on {cluster.address}", highlight=False)
        return 0
    table = Table(box=None)
    for head in ("run", "state", "stage", "since", "submission"):
        table.add_column(head, no_wrap=head != "submission", overflow="fold")
    for submission in shown:
        log = cluster.log(submission.id)
        table.add_row(
            submission.run.name,
            submission.state.value,
            last_stage(log) or "",
            _start_time(submission),
            submission.id,
        )
    console.print(table)
    if arguments.run is not None:
        console.print(f"Run folder: {shown[0].run.folder}", soft_wrap=True)
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    from sirt_ray.on_ray.submit.logs import follow

    cluster, console = _cluster(arguments), Console()
    submission = _find(_latest_of_each(cluster.submissions()), arguments.run, cluster)
    if not arguments.follow:
        _print_log(console, cluster.log(submission.id))
        return 0
    for text in follow(cluster, submission.id, _reporter(Console(stderr=True))):
        _print_log(console, text)
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    cluster, console = _cluster(arguments), Console()
    submission = _find(_latest_of_each(cluster.submissions()), arguments.run, cluster)
    with _packed(None, True) as folder:
        cluster.stop(submission, folder, _reporter(console))
    state = cluster.submission(submission.id).state
    console.print(f"{submission.id}: {state.value}; nothing of it is left on the cluster")
    return 0


def _latest_of_each(submissions: "Sequence[Submission]") -> "list[Submission]":
    """Return the last submission of each run, given all submissions with the oldest first."""
    return list({submission.run.id: submission for submission in submissions}.values())


def _find(submissions: "Sequence[Submission]", run: str, cluster: "Cluster") -> "Submission":
    """Return the submission of a run, by the run's name, the run's id or the submission's id.
    Raises ConfigError if there is none or more than one."""
    found = [s for s in submissions if run in (s.run.name, s.run.id, s.id)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"there are {len(found)} runs named {run} on {cluster.address}. Give one of their ids:"
            f" {', '.join(s.id for s in found)}"
        )
    raise ConfigError(
        f"there is no run {run} on {cluster.address}. Runs there:"
        f" {', '.join(s.run.name for s in submissions) or 'none'}"
    )


# What all four commands need


def _cluster(arguments: argparse.Namespace) -> "Cluster":
    from sirt_ray.on_ray.submit.client import Cluster

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)
    return Cluster.at(arguments.address)


@contextmanager
def _packed(job: Path | None, with_package: bool, code: Sequence[Path] = ()) -> Generator[Path]:
    """Yield a temporary folder with what is uploaded to the cluster."""
    from sirt_ray.on_ray.submit.client import pack

    with tempfile.TemporaryDirectory(prefix="sirt-submit-") as folder:
        pack(Path(folder), job, with_package, code)
        yield Path(folder)


def _reporter(console: Console) -> "Report":
    return partial(console.print, soft_wrap=True, style="dim", markup=False, highlight=False)


def _print_log(console: Console, text: str) -> None:
    """Print a part of a log without its escape sequences, which could move the cursor."""
    clean = text.replace("\x1b", "")
    console.print(clean, end="", soft_wrap=True, markup=False, highlight=False)


def _start_time(submission: "Submission") -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(submission.started))
