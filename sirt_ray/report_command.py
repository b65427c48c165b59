"""`sirt report`: what is asked for; the report itself is `report`'s."""

import argparse
from pathlib import Path

from sirt_ray import storage
from sirt_ray.arguments import add_debug


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    report = commands.add_parser(
        "report", help="what a run has come to, one job's runs under several seeds, or a study"
    )
    report.add_argument(
        "folders",
        nargs="+",
        metavar="RUN_DIR|STUDY_DIR",
        help="a run's folder, several of one job under different seeds, or one study's",
    )
    report.add_argument(
        "--format", choices=("text", "markdown"), default="text", help="(default: %(default)s)"
    )
    report.add_argument("--out", type=Path, metavar="FILE", help="write it there, do not print it")
    add_debug(report)
    report.set_defaults(command=_report, stopped="stopped")


def _report(arguments: argparse.Namespace) -> int:
    from sirt_ray.report.command import write_report

    folders = [storage.local(folder) for folder in arguments.folders]
    write_report(folders, arguments.format, arguments.out)
    return 0
