"""`sirt report` and `sirt compare`: the arguments; the reports are made in `report/`."""

import argparse
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sirt_ray.cli.options import add_debug, examples
from sirt_ray.errors import ConfigError
from sirt_ray.storage import object_store
from sirt_ray.storage.uri import user_path

if TYPE_CHECKING:
    from sirt_ray.report.document import Document

REPORT_EXAMPLES = """\
examples:
  sirt report runs/quickstart --open                       # runs/quickstart/report.html
  sirt report runs/quickstart --format text                # tables for a terminal
  sirt report runs/a-seed0 runs/a-seed1 --format markdown  # one job under several seeds
  sirt report runs/study_quickstart                        # a study
"""
COMPARE_EXAMPLES = """\
examples:
  sirt compare runs/mine runs/other --open                 # runs/compare.html
  sirt compare runs/mine runs/other --format text
  sirt compare runs/a-seed0 runs/a-seed1 runs/b-seed0 runs/b-seed1   # two jobs, two seeds each
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    report = commands.add_parser(
        "report",
        help="what a run has come to, one job's runs under several seeds, or a study",
        description="Write what runs have come to as one page that needs no network, or print it.",
        **examples(REPORT_EXAMPLES),
    )
    report.add_argument(
        "folders",
        nargs="+",
        metavar="RUN_DIR|STUDY_DIR",
        help="a run's folder, several of one job under different seeds, or one study's",
    )
    _add_form(report, "report.html")
    report.set_defaults(command=_report, stopped="stopped")

    compare = commands.add_parser(
        "compare",
        help="runs of any jobs side by side, with the intervals of their differences",
        description="Compare runs with the first of them, on the same test questions. Runs of one"
        " job under several seeds are one row.",
        **examples(COMPARE_EXAMPLES),
    )
    compare.add_argument("folders", nargs="+", metavar="RUN_DIR", help="two runs' folders or more")
    _add_form(compare, "compare.html")
    compare.set_defaults(command=_compare, stopped="stopped")


def _add_form(parser: argparse.ArgumentParser, page: str) -> None:
    parser.add_argument(
        "--format",
        choices=("html", "markdown", "text"),
        default="html",
        help="a page that is written, or tables that are printed (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FILE",
        help=f"write it there (default of a page: {page} in the folder, or next to several)",
    )
    parser.add_argument("--open", action="store_true", help="show the page in a browser")
    add_debug(parser)


def _report(arguments: argparse.Namespace) -> int:
    from sirt_ray.report import command

    return _deliver(arguments, command.report_page, command.report_document, "report.html")


def _compare(arguments: argparse.Namespace) -> int:
    from sirt_ray.report import command

    return _deliver(arguments, command.compare_page, command.compare_document, "compare.html")


def _deliver(
    arguments: argparse.Namespace,
    page: Callable[[Sequence[Path]], str],
    document: "Callable[[Sequence[Path]], Document]",
    name: str,
) -> int:
    from sirt_ray.report import command

    folders, out = (
        [object_store.to_local_path(folder) for folder in arguments.folders],
        arguments.out,
    )
    if arguments.format != "html":
        if arguments.open:
            raise ConfigError(
                f"--open shows a page, and --format {arguments.format} makes none. Leave one out"
            )
        command.write_document(document(folders), arguments.format, out)
        return 0
    text = page(folders)
    target = out or command.default_page(folders, name)
    command.write_report(target, text)
    console = Console()
    console.print(object_store.to_uri(target), markup=False, highlight=False, soft_wrap=True)
    if arguments.open and not webbrowser.open(target.resolve().as_uri()):
        console.print("There is no browser on this machine: open the file in one", style="dim")
    return 0
