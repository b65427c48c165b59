"""What a check of the machine says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]
"""`warning`: some of what the package can do will not work here. `problem`: a run will not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Example::

    Finding("disk", "warning", "3 GiB are free in /data/runs", "Free some, or set `output`")
    """

    check: str
    level: Level
    found: str
    cure: str = ""
    """One line; empty where there is nothing to mend."""


Check = Callable[[], Sequence[Finding]]


def look(name: str, check: Check) -> Sequence[Finding]:
    """The check's findings. A machine on which a check itself cannot run has a finding, too."""
    try:
        return check()
    except Exception as error:  # A broken installation has no list of what it may raise.
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return [
            Finding(
                name,
                "problem",
                f"cannot be looked at: {said}",
                "Mend what the lines above name, or install the package anew",
            )
        ]
