"""`sirt submit`: run a job on a cluster that this machine is no part of."""

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
from sirt_ray.cli.options import add_allow_code, add_debug, add_job, add_redo, examples
from sirt_ray.config import load
from sirt_ray.config import study as studies
from sirt_ray.config.job import JobConfig
from sirt_ray.driver import run as running
from sirt_ray.errors import ConfigError
from sirt_ray.report.journal import after_last_stage, last_stage
from sirt_ray.storage import object_store

if TYPE_CHECKING:  # bring Ray with them
    from sirt_ray.on_ray.submit.client import Cluster, Submission, SubmittedRun
    from sirt_ray.on_ray.submit.logs import Print

# FOLDED cluster_command: `sirt status`, `logs` and `stop`: the runs on a cluster that this machine is no part of.

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


def add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="of the cluster's dashboard, as in http://HEAD:8265 (RAY_API_SERVER_ADDRESS and"
        " RAY_ADDRESS go before it, as in `ray job`)",
    )
    add_debug(parser)


def _status(arguments: argparse.Namespace) -> int:
    cluster, console = cluster_of(arguments), Console()
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
            since(submission),
            submission.id,
        )
    console.print(table)
    if arguments.run is not None:
        console.print(f"Run folder: {shown[0].run.folder}", soft_wrap=True)
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    from sirt_ray.on_ray.submit.logs import follow

    cluster, console = cluster_of(arguments), Console()
    submission = _find(_latest_of_each(cluster.submissions()), arguments.run, cluster)
    if not arguments.follow:
        show(console, cluster.log(submission.id))
        return 0
    for text in follow(cluster, submission.id, saying(Console(stderr=True))):
        show(console, text)
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    cluster, console = cluster_of(arguments), Console()
    submission = _find(_latest_of_each(cluster.submissions()), arguments.run, cluster)
    with packed(None, True) as folder:
        cluster.stop(submission, folder, saying(console))
    state = cluster.submission(submission.id).state
    console.print(f"{submission.id}: {state.value}; nothing of it is left on the cluster")
    return 0


def _latest_of_each(submissions: "Sequence[Submission]") -> "list[Submission]":
    """Of each run, its last submission."""
    return list({submission.run.id: submission for submission in submissions}.values())


def _find(submissions: "Sequence[Submission]", run: str, cluster: "Cluster") -> "Submission":
    """The run that is meant by its name, its id or the id of its submission."""
    found = [s for s in submissions if run in (s.run.name, s.run.id, s.id)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"there are {len(found)} runs named {run} on {cluster.address}. Say which:"
            f" {', '.join(s.id for s in found)}"
        )
    raise ConfigError(
        f"there is no run {run} on {cluster.address}. There are"
        f" {', '.join(s.run.name for s in submissions) or 'none at all'}"
    )


def cluster_of(arguments: argparse.Namespace) -> "Cluster":
    from sirt_ray.on_ray.submit.client import Cluster

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)
    return Cluster.at(arguments.address)


@contextmanager
def packed(job: Path | None, with_package: bool, code: Sequence[Path] = ()) -> Generator[Path]:
    from sirt_ray.on_ray.submit.client import pack

    with tempfile.TemporaryDirectory(prefix="sirt-submit-") as folder:
        pack(Path(folder), job, with_package, code)
        yield Path(folder)


def saying(console: Console) -> "Print":
    return partial(console.print, soft_wrap=True, style="dim", markup=False, highlight=False)


def show(console: Console, text: str) -> None:
    """A log is not trusted to move the cursor."""
    clean = text.replace("\x1b", "")
    console.print(clean, end="", soft_wrap=True, markup=False, highlight=False)


def since(submission: "Submission") -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(submission.began))


EXAMPLES = """\
examples:
  sirt submit jobs/mine.yaml --address http://HEAD:8265 --set output=/shared/runs
  sirt submit jobs/mine.yaml --detach          # the cluster that RAY_ADDRESS names
  sirt status                                  # all runs there
  sirt logs mine --follow
  sirt stop mine
"""
_ANSWER_SECONDS = 20.0
_HANDOVER_SECONDS = 5.0
"""From the loss of a driver's node to the next submission: Ray ends what is left of the driver."""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    submit = commands.add_parser(
        "submit",
        help="run a job or a study on a cluster, from elsewhere",
        description="Send a job to a cluster and show its progress. The same command again attaches"
        " to it while it runs, and continues it where it ended before it was finished.",
        **examples(EXAMPLES),
    )
    add_job(submit)
    submit.add_argument(
        "--detach", action="store_true", help="return at once; the job goes on by itself"
    )
    submit.add_argument(
        "--installed",
        action="store_true",
        help="send the job file only: the cluster's image has this version of sirt-ray",
    )
    submit.add_argument(
        "--resubmit", action="store_true", help="submit it also where it is finished"
    )
    add_redo(submit)
    add_allow_code(submit)
    submit.add_argument(
        "--retries",
        type=int,
        default=3,
        metavar="N",
        help="submit it again so often when the driver's node is lost (default: %(default)s)",
    )
    submit.set_defaults(command=_submit)
    add_address(submit)
    status = commands.add_parser(
        "status", help="runs on a cluster, and how far they are", **examples(STATUS_EXAMPLES)
    )
    status.add_argument("run", nargs="?", metavar="RUN", help="(default: all)")
    status.set_defaults(command=_status, stopped="stopped")
    logs = commands.add_parser(
        "logs", help="what a run on a cluster has written", **examples(LOGS_EXAMPLES)
    )
    logs.add_argument("run", metavar="RUN")
    logs.add_argument("--follow", action="store_true", help="until the run ends")
    logs.set_defaults(command=_logs, stopped="stopped; the run goes on")
    stop = commands.add_parser(
        "stop",
        help="end a run on a cluster; `sirt submit` continues it later",
        **examples(STOP_EXAMPLES),
    )
    stop.add_argument("run", metavar="RUN")
    stop.set_defaults(command=_stop, stopped="stopped waiting; the run is being ended")
    for parser in (status, logs, stop):
        add_address(parser)


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
    cluster = cluster_of(arguments)
    before = cluster.latest(run)
    if before is not None:
        done = _answered_by(before, run, cluster, console, arguments)
        if done is not None:
            return done
    submission = _send(cluster, run, jobs, arguments)
    new = before is None or submission.number > before.number
    continues = "" if before is None else " It continues where the one before ended."
    console.print(
        f"Submitted to {cluster.address} as {submission.id}.{continues}"
        if new
        else f"{submission.id} runs already on {cluster.address} since {since(submission)}",
        soft_wrap=True,
        highlight=False,
    )
    if arguments.detach:
        _say_commands(console, cluster, run)
        return 0
    while True:
        submission = _watch(cluster, submission, console)
        if not submission.node_lost or not arguments.retries:
            break
        arguments.retries -= 1
        console.print("The driver's node is lost; submitting it again", style="yellow")
        time.sleep(_HANDOVER_SECONDS)
        submission = _send(cluster, run, jobs, arguments)
    return _told(submission, console)


def _read(arguments: argparse.Namespace) -> "tuple[list[JobConfig], SubmittedRun]":
    """The jobs of the file, and what they are called on a cluster."""
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


def _answered_by(
    before: "Submission",
    run: "SubmittedRun",
    cluster: "Cluster",
    console: Console,
    arguments: argparse.Namespace,
) -> int | None:
    """The exit code where the submission before leaves nothing to submit. Raises ConfigError where
    one with other settings is under way."""
    if not before.is_over:
        _refuse_other(before, run)
    same = before.run.settings == run.settings
    if before.state == "SUCCEEDED" and same and not arguments.resubmit:
        console.print(f"{before.id} is finished; --resubmit runs it again", soft_wrap=True)
        console.print(after_last_stage(cluster.log(before.id)), markup=False, highlight=False)
        return 0
    return None


def _refuse_other(submission: "Submission", run: "SubmittedRun") -> None:
    if submission.run.settings != run.settings:
        raise ConfigError(
            f"{submission.id} is under way in {run.folder}, with other settings. Wait for its end,"
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
    command += ["--redo"] if arguments.redo else []
    files = [user_code.file_of(reference) for job in jobs for reference in job.code]
    command += ["--allow-code"] if files else []
    with packed(arguments.job, not arguments.installed, files) as folder:
        sent = cluster.submit(run, folder, shlex.join(command), jobs[0].resources.driver)
    _refuse_other(sent, run)  # Somebody else may have been faster.
    return sent


def _watch(cluster: "Cluster", submission: "Submission", console: Console) -> "Submission":
    """Show what the run writes until it ends. Ctrl-C asks whether the run shall end, too."""
    from sirt_ray.on_ray.submit.logs import follow

    try:
        for text in follow(cluster, submission.id, saying(console)):
            show(console, text)
    except KeyboardInterrupt:
        _ask_to_stop(cluster, submission, console)
        raise
    return cluster.submission(submission.id)


def _ask_to_stop(cluster: "Cluster", submission: "Submission", console: Console) -> None:
    """Without an answer, and where nobody can answer, the run goes on."""
    try:
        answer = ""
        if sys.stdin.isatty():
            console.print(f"\nStop {submission.id}, too? [y/N] ", end="", markup=False)
            if select.select([sys.stdin], [], [], _ANSWER_SECONDS)[0]:
                answer = sys.stdin.readline().strip().lower()
        if answer in ("y", "yes"):
            with packed(None, True) as folder:
                cluster.stop(submission, folder, saying(console))
            console.print(f"{submission.id} is stopped; the same command continues it")
            return
    except KeyboardInterrupt:
        pass
    console.print(
        f"\n{submission.id} is not stopped: it goes on as long as its cluster does.",
        soft_wrap=True,
        highlight=False,
    )
    _say_commands(console, cluster, submission.run)


def _told(submission: "Submission", console: Console) -> int:
    """The exit code of an ended submission: the driver's, where it came to one."""
    if submission.state == "SUCCEEDED":
        return 0
    if submission.state == "STOPPED":
        console.print(f"{submission.id} was stopped; the same command continues it")
        return 1
    what = submission.message.partition("last available logs")[0].strip(" ,\n")
    console.print(f"[bold red]failed:[/] {submission.id}: ", end="")
    console.print(f"{what}. The same command continues it", markup=False, soft_wrap=True)
    return submission.exit_code if submission.exit_code in (1, 2) else 1


def _say_commands(console: Console, cluster: "Cluster", run: "SubmittedRun") -> None:
    for command in ("status", "logs", "stop"):
        more = " --follow" if command == "logs" else ""
        console.print(
            f"  sirt {command} {run.name} --address {cluster.address}{more}",
            soft_wrap=True,
            highlight=False,
        )
