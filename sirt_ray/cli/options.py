"""Arguments that several commands share."""

import argparse
import sys
from typing import Any

from sirt_ray.storage.uri import user_path


def examples(text: str) -> dict[str, Any]:
    """Return the arguments with which a parser prints `text` as it is, below its options."""
    return {"epilog": text, "formatter_class": argparse.RawDescriptionHelpFormatter}


SERVE_PORT = 8000
"""The default port of `sirt serve`."""


def add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job",
        type=user_path,
        metavar="JOB.yaml",
        help="a job, or a study (a file with the key `study`), which is many of them",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="a.b=value",
        help="override one setting of the job, or of all trials of the study; may be repeated",
    )


def add_force(
    parser: argparse.ArgumentParser,
    what: str = "delete and rebuild artifacts that the job's settings have made stale",
) -> None:
    parser.add_argument("--force", action="store_true", help=what)
    parser.add_argument(
        "--redo", action=_EarlierName, dest="force", nargs=0, help=argparse.SUPPRESS
    )


class _EarlierName(argparse.Action):
    """An earlier name of a flag: sets the flag and prints a note."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, True)
        sys.stderr.write(
            f"{option_string} is now called --{self.dest}; the earlier name still works\n"
        )


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="execute the Python files that the job names, as SIRT_ALLOW_CODE=1 does; read them"
        " first",
    )
