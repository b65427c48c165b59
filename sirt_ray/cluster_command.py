"""`sirt status`, `logs` and `stop`: the runs on a cluster that this machine is no part of."""

import argparse
import logging
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from sirt_ray.cli.options import add_debug, examples
from sirt_ray.errors import ConfigError
from sirt_ray.report.journal import last_stage

if TYPE_CHECKING:  # bring Ray with them
    from sirt_ray.on_ray.submissions import Submission
    from sirt_ray.on_ray.submit.client import Cluster
    from sirt_ray.on_ray.submit.logs import Say

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


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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


def saying(console: Console) -> "Say":
    return partial(console.print, soft_wrap=True, style="dim", markup=False, highlight=False)


def show(console: Console, text: str) -> None:
    """A log is not trusted to move the cursor."""
    clean = text.replace("\x1b", "")
    console.print(clean, end="", soft_wrap=True, markup=False, highlight=False)


def since(submission: "Submission") -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(submission.began))
