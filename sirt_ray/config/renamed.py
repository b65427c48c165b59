"""Renamed settings: the old name is accepted and means the new one, with a note to the user.

The settings of a file are renamed as they are read, before files, methods and overrides are merged,
so that the old and the new name are one setting wherever they are mixed.
"""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from sirt_ray.logs import log_event

Position = tuple[str | int, ...]

_TRAINING = {"choose": "select_by"}
_RENAMED: Mapping[str, Mapping[str, str]] = {
    "tune": _TRAINING,
    "refine": _TRAINING,
    "even_rounds": _TRAINING,
}
"""Section -> old name -> current name."""


def current_position(position: Position) -> Position:
    """Return the position of a setting in the tree of a job, by current names."""
    *above, name = position
    if not above or str(above[-1]) not in _RENAMED:
        return position
    return (*above, _RENAMED[str(above[-1])].get(str(name), name))


def with_current_names(value: Any, at: Position = ()) -> Any:
    """Return settings with current names, section by section; `at` is the position of `value`.

    A name that is set under both its names keeps both, and the section refuses it.
    """
    if not isinstance(value, Mapping):
        return value
    section = cast(Mapping[Any, Any], value)
    result: dict[Any, Any] = {}
    for name, below in section.items():
        current = current_position((*at, name))[-1]
        key = name if current in section else current
        result[key] = with_current_names(below, (*at, key))
    return result


def both_names_problem(section: str, settings: Mapping[str, Any]) -> str | None:
    """Return what is wrong if a setting of `section` is set under both its names."""
    for old, new in _RENAMED[section].items():
        if old in settings and new in settings:
            return f"{old} is the earlier name of {new}, and both are set. Remove {old}"
    return None


@cache
def note_renamed(source: str, old: str, new: str) -> None:
    """Log a warning, once, that a setting has a new name. `source` is what sets it: `file:line`,
    an override, or a class."""
    log_event(logging.WARNING, f"{source}: {old} is now called {new}; the earlier name still works")
