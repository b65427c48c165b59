"""Sets of real numbers: an inequality of one variable is the interval that it describes, so that
`3 < x \\le 4` and `(3,4]` are the same answer.

All texts are without spaces and have ≤ and ≥ for LaTeX's names, as `expressions.normalise` makes
them.
"""

import re

_BETWEEN = re.compile(r"([^<>≤≥=]{1,100})([<>≤≥])[a-z]([<>≤≥])([^<>≤≥=]{1,100})")
_BEYOND = re.compile(r"[a-z]([<>≤≥])([^<>≤≥=]{1,100})")
_BEFORE = re.compile(r"([^<>≤≥=]{1,100})([<>≤≥])[a-z]")
_GREATER, _CLOSED = ">≥", "≤≥"
_INFINITE = r"\infty"


def from_inequality(text: str) -> str | None:
    """The interval, or the union of the intervals between whose inequalities there are commas (as
    for "or"); None where the text is no inequality between bounds and one variable.

    Example::

        from_inequality("3<x≤4") == "(3,4]"
    """
    if not any(sign in text for sign in "<>≤≥"):
        return None
    found = [_interval(part) for part in text.split(",")]
    known = [interval for interval in found if interval is not None]
    return "\\cup".join(known) if len(known) == len(found) else None


def _interval(text: str) -> str | None:
    if match := _BETWEEN.fullmatch(text):
        low, first, second, high = match.groups()
        if (first in _GREATER) != (second in _GREATER):
            return None
        if first in _GREATER:
            low, first, second, high = high, second, first, low
        return f"{_opening(first)}{low},{high}{_closing(second)}"
    if match := _BEYOND.fullmatch(text):
        sign, bound = match.groups()
        greater = sign in _GREATER
    elif match := _BEFORE.fullmatch(text):
        bound, sign = match.groups()
        greater = sign not in _GREATER
    else:
        return None
    if greater:
        return f"{_opening(sign)}{bound},{_INFINITE})"
    return f"(-{_INFINITE},{bound}{_closing(sign)}"


def _opening(sign: str) -> str:
    return "[" if sign in _CLOSED else "("


def _closing(sign: str) -> str:
    return "]" if sign in _CLOSED else ")"
