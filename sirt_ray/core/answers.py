"""The verifier: what a text's final answer is, and whether it is right.

There is one, for filtering demonstrations, for pairing and for evaluation, so that a number in a
table and a preference pair never disagree about what right means.

Model text is untrusted. Nothing here raises on it, runs it or needs more than linear time for it.
"""

from collections.abc import Sequence
from typing import Literal

from sirt_ray.core import choices as options
from sirt_ray.core import expressions, numbers
from sirt_ray.types import Verdict

AnswerKind = Literal["number", "choice", "expression"]

VERSION = "1"
"""Raised whenever some text is judged differently."""

LONGEST_TEXT = 200_000
"""Of a longer text only the end is read: the final answer is there."""


def extract(text: str, kind: AnswerKind, choices: Sequence[str] = ()) -> str | None:
    """The final answer: a plain number, an option's letter, or an expression; None if there is
    none that can be read, or if several are named.

    Examples::

        extract("16 - 7 = 9, so she makes 9 * 2 = $18.00. The answer is $18.00.", "number") == "18"
        extract("The correct answer is: D) Venice", "choice", ("Michigan", ..., "Venice")) == "D"
        extract("Therefore \\\\boxed{\\\\frac{1}{2}}.", "expression") == "\\\\frac{1}{2}"
    """
    text = text[-LONGEST_TEXT:]
    if kind == "number":
        return numbers.extract(text)
    if kind == "choice":
        return options.extract(text, choices)
    return expressions.extract(text)


def same(extracted: str, reference: str, kind: AnswerKind) -> bool:
    """Whether two final answers mean the same."""
    if kind == "number":
        return numbers.equal(extracted, reference)
    if kind == "choice":
        return extracted.strip().upper() == reference.strip().upper()
    return expressions.equal(extracted, reference)


def grade(
    text: str, reference: str, kind: AnswerKind, choices: Sequence[str] = ()
) -> tuple[Verdict, str | None]:
    """The verdict on a text, and the final answer that was found in it."""
    extracted = extract(text, kind, choices)
    if extracted is None:
        return "unparseable", None
    return ("right" if same(extracted, reference, kind) else "wrong"), extracted
