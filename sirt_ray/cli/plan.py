"""`sirt plan`: what a job or a study would do, and how it fits on a cluster."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sirt_ray.artifacts.store import ArtifactStatus
from sirt_ray.cli.options import add_debug, add_job, examples
from sirt_ray.cli.run import checked, print_plan
from sirt_ray.config import load
from sirt_ray.config import study as studies
from sirt_ray.config.job import JobConfig
from sirt_ray.driver import plan as cluster_plan
from sirt_ray.planning import clusters
from sirt_ray.planning.clusters import Cluster

_NO_CLUSTER = (
    "For placement, memory and GPU-hours give the cluster: --address A, or --cluster as in 4x48GB"
)


EXAMPLES = """\
examples:
  sirt plan jobs/quickstart.yaml                 # all settings, and what is finished
  sirt plan jobs/cluster.yaml --cluster 4x48GB   # placement, memory, hours
  sirt plan jobs/study_quickstart.yaml --set 'only=[{method: rft}]'
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    plan = commands.add_parser(
        "plan",
        help="print what a job would do and all its settings, or what a study would do",
        **examples(EXAMPLES),
    )
    add_job(plan)
    add_debug(plan)
    _add_cluster(plan)
    plan.set_defaults(command=_plan)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--address",
        help="plan for this Ray cluster: placement, memory of each GPU, hours",
    )
    which.add_argument(
        "--cluster",
        metavar="DESCRIPTION",
        help=f"the same for a described cluster: {clusters.GRAMMAR}",
    )


def show(
    console: Console,
    arguments: argparse.Namespace,
    jobs: Sequence[JobConfig],
    artifacts: Sequence[tuple[JobConfig, ArtifactStatus]],
) -> None:
    """Print the placement on the cluster that the arguments name, if they do. Raises ConfigError
    for a description that is none, ResourceError for what does not fit."""
    if arguments.cluster is not None:
        cluster_plan.show_placement(console, jobs, artifacts, clusters.described(arguments.cluster))
    elif arguments.address is not None:
        cluster_plan.show_placement(console, jobs, artifacts, _live(arguments.address, jobs[0]))
    else:
        console.print(_NO_CLUSTER, soft_wrap=True, highlight=False)


def print_base_files(console: Console, path: Path) -> None:
    """Print one line that names the base files of a job or study file, if it has any."""
    if bases := load.base_files(path):
        named = ", whose base is ".join(map(str, bases))
        console.print(f"Base: {named}", markup=False, highlight=False, soft_wrap=True)


def _live(address: str, job: JobConfig) -> Cluster:
    from sirt_ray.on_ray import cluster
    from sirt_ray.on_ray.cluster import connected

    with (
        tempfile.TemporaryDirectory(prefix="sirt-plan-") as logs,
        connected(address, job.resources, Path(logs)),
    ):
        return cluster.read(address)


def _plan(arguments: argparse.Namespace) -> int:
    from sirt_ray.cli import study as study_command
    from sirt_ray.driver import run as running

    if studies.is_study(arguments.job):
        return study_command.plan(arguments)
    console = Console()
    unchecked: list[str] = []
    job = checked(arguments, unchecked)
    console.print(load.dump(job), markup=False, highlight=False)
    print_base_files(console, arguments.job)
    run_dir = job.run_dir
    planned = running.dry_run(job, run_dir)
    print_plan(console, job, planned)
    running.print_unchecked(console, unchecked)
    show(console, arguments, [job], [(job, status) for status in planned.statuses])
    return 0
