"""The result of a check of the machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]
"""`warning`: some features of the package will not work on this machine. `problem`: a run will not.
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check. `sirt doctor --json` prints these fields.

    Example::

    Finding("disk", "warning", "3 GiB are free in /data/runs", "Free some, or set `output`")
    """

    check: str
    level: Level
    found: str
    """What the check found."""
    cure: str = ""
    """How to fix it, in one line; empty if nothing is wrong."""


Check = Callable[[], Sequence[Finding]]


def run_check(name: str, check: Check) -> Sequence[Finding]:
    """Run the check. If it raises, that is a finding, too."""
    try:
        return check()
    except Exception as error:  # A broken installation may raise anything.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return [
            Finding(
                name,
                "problem",
                f"cannot be checked: {reason}",
                "Fix what the lines above report, or reinstall the package",
            )
        ]
