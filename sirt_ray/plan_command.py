"""`sirt plan --address A` and `--cluster DESCRIPTION`: the cluster that a plan is for."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sirt_ray import cluster_plan
from sirt_ray.config import JobConfig
from sirt_ray.planning import clusters
from sirt_ray.planning.clusters import Cluster
from sirt_ray.survey import State

_NO_CLUSTER = (
    "For who sits where, memory and GPU-hours give the cluster: --address A, or --cluster as in"
    " 4x48GB"
)


def add_cluster(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--address",
        help="place it on this Ray cluster: who sits where, memory of each GPU, hours",
    )
    which.add_argument(
        "--cluster", metavar="DESCRIPTION", help=f"the same on a cluster: {clusters.GRAMMAR}"
    )


def show(
    console: Console,
    arguments: argparse.Namespace,
    jobs: Sequence[JobConfig],
    artifacts: Sequence[tuple[JobConfig, State]],
) -> None:
    """Print the placement on the cluster that the arguments name, if they do. Raises ConfigError
    for a description that is none, ResourceError for what does not fit."""
    if arguments.cluster is not None:
        cluster_plan.show(console, jobs, artifacts, clusters.described(arguments.cluster))
    elif arguments.address is not None:
        cluster_plan.show(console, jobs, artifacts, _live(arguments.address, jobs[0]))
    else:
        console.print(_NO_CLUSTER, soft_wrap=True, highlight=False)


def _live(address: str, job: JobConfig) -> Cluster:
    from sirt_ray.on_ray import live_cluster
    from sirt_ray.on_ray.cluster import connected

    with (
        tempfile.TemporaryDirectory(prefix="sirt-plan-") as logs,
        connected(address, job.resources, Path(logs)),
    ):
        return live_cluster.read(address)
