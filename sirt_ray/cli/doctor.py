"""`sirt doctor`: check whether this machine, and a cluster, have what a run needs."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sirt_ray.cli.options import SERVE_PORT, add_debug, examples
from sirt_ray.config.job import JobConfig
from sirt_ray.doctor.findings import Finding, Level, run_check
from sirt_ray.errors import SirtError

EXAMPLES = """\
examples:
  sirt doctor                                # everything; half a minute
  sirt doctor --quick                        # only checks that start nothing
  sirt doctor --address http://head:8265     # and whether this machine fits that cluster
  sirt doctor --json > doctor.json           # to attach to a bug report
"""
_STYLES: dict[Level, str] = {
    "ok": "[green]ok[/]",
    "warning": "[yellow]warning[/]",
    "problem": "[bold red]problem[/]",
}
_BAD: tuple[Level, ...] = ("problem", "warning")
_PORTS = (
    (SERVE_PORT, "the default of `sirt serve`", "Choose another with `sirt serve --port`"),
    (
        8265,
        "the dashboard of a Ray cluster",
        "A cluster may be running here: `ray status`; of a new one, `ray start --dashboard-port`",
    ),
)


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `sirt doctor`."""
    doctor = commands.add_parser(
        "doctor",
        help="check what this machine lacks for a run, and how to fix it",
        description="Check what a run needs: versions, compilers, memory, disk, GPUs, ports, the"
        " hub; then sample from a tiny model behind Ray Serve and train it with DeepSpeed.",
        **examples(EXAMPLES),
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument("--quick", action="store_true", help="skip the checks that start Ray")
    doctor.add_argument(
        "--address",
        help="also check whether this machine's Ray fits that cluster; an address as for `sirt run`"
        " or `sirt submit`",
    )
    add_debug(doctor)
    doctor.set_defaults(command=_doctor, stopped="stopped")


def _doctor(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    console = Console(stderr=arguments.json)
    spinner = nullcontext() if arguments.json else console.status("checking this machine")
    with spinner:
        findings = list(_findings(arguments.quick, arguments.address))
    seconds = time.monotonic() - started
    problems = sum(finding.level == "problem" for finding in findings)
    if arguments.json:
        report = {
            "ok": problems == 0,
            "seconds": round(seconds, 1),
            "findings": [asdict(finding) for finding in findings],
        }
        sys.stdout.write(f"{json.dumps(report, indent=2)}\n")
    else:
        console.print(_table(findings))
        console.print(_summary(findings, seconds), highlight=False)
    return SirtError.exit_code if problems else 0


def _findings(quick: bool, address: str | None) -> Iterator[Finding]:
    from sirt_ray.doctor import gpus, machine, network, packages

    yield from run_check("python", packages.check_python)
    yield from run_check("packages", packages.check_packages)
    there = gpus.devices()
    yield from run_check("gpus", lambda: gpus.check_gpus(there))
    yield from run_check("compilers", lambda: machine.check_compilers(bool(there)))
    yield from run_check("shared memory", machine.check_shared_memory)
    yield from run_check("memory", machine.check_memory)
    runs = Path(JobConfig.model_fields["output"].default)
    yield from run_check("disk", lambda: machine.check_disk(runs))
    yield from run_check("open files", machine.check_open_files)
    yield from run_check("ports", lambda: network.check_ports(_PORTS))
    yield from run_check("hub", network.check_hub)
    if address is not None:
        yield from run_check("cluster", lambda: _cluster(address))
    if not quick:
        yield from run_check("Ray", _trial)


def _trial() -> Sequence[Finding]:
    from sirt_ray.doctor.trial import check_trial

    return check_trial()


def _cluster(address: str) -> list[Finding]:
    """Check whether this process can join the cluster. Ray itself compares the versions of Ray and
    Python."""
    from sirt_ray.config.resources import ResourcesConfig
    from sirt_ray.on_ray import cluster
    from sirt_ray.on_ray.cluster import connected
    from sirt_ray.on_ray.submit.client import Cluster

    try:
        if "://" in address and not address.startswith("ray://"):
            Cluster.at(address)
            return [Finding("cluster", "ok", f"{address} answers, with the Ray of this machine")]
        with (
            tempfile.TemporaryDirectory(prefix="sirt-doctor-") as logs,
            connected(address, ResourcesConfig(), Path(logs)),
        ):
            nodes, gpus = len(cluster.nodes()), cluster.cluster_gpus()
        found = f"{address} has {nodes} node{'s' * (nodes != 1)} and {gpus:g} GPUs"
        return [Finding("cluster", "ok", found)]
    except SirtError as error:
        what, _, cure = " ".join(str(error).split()).partition(". ")
        return [Finding("cluster", "problem", what, cure)]


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = escape(finding.found)
        if finding.cure:
            text += f"\n[bold]→[/] {escape(finding.cure)}"
        table.add_row(_STYLES[finding.level], finding.check, text)
    return table


def _summary(findings: Sequence[Finding], seconds: float) -> str:
    count = {level: sum(finding.level == level for finding in findings) for level in _STYLES}
    counted = ", ".join(f"{count[level]} {level}{'s' * (count[level] != 1)}" for level in _BAD)
    verdict = (
        "a run will not work on this machine" if count["problem"] else "this machine can run jobs"
    )
    return f"{counted}: {verdict} ({seconds:.0f} s)"
