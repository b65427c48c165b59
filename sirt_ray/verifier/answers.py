"""The verifier: what a text's final answer is, and whether it is right.

There is one, for filtering demonstrations, for pairing, for evaluation and for `sirt grade`, so
that a number in a table and a preference pair never disagree about what right means.

Model text is untrusted. Nothing here raises on it, runs it or needs more than linear time for it.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from sirt_ray.types import Judgement
from sirt_ray.verifier import choices as options
from sirt_ray.verifier import expressions, numbers, numerals
from sirt_ray.verifier.statements import Found, is_cut_off

AnswerKind = Literal["number", "choice", "expression"]

Equivalent = Callable[[str, str], bool | None]
"""(reference, answer) -> whether the two expressions are the same by algebra; None where that takes
too long to say."""

VERSION = "4"
"""Raised whenever some text is judged differently."""

LONGEST_TEXT = 200_000
"""Of a longer text only the end is read: the final answer is there."""


def extract(text: str, kind: AnswerKind, choices: Sequence[str] = ()) -> Found | None:
    """The final answer: a plain number, an option's letter, or an expression; None if there is
    none that can be read, or if several are named.

    Examples::

        extract("16 - 7 = 9, so she makes 9 * 2 = $18.00. The answer is $18.00.", "number")
            == Found("18", stated=True)
        extract("The correct answer is: D) Venice", "choice", ("Michigan", ..., "Venice"))
            == Found("D", stated=True)
        extract("So half of it is $\\frac{1}{2}$.", "expression")
            == Found("\\frac{1}{2}", stated=False)
    """
    text = text[-LONGEST_TEXT:]
    if kind == "number":
        found = numbers.extract(text)
    elif kind == "choice":
        found = options.extract(text, choices)
    else:
        found = expressions.extract(text)
    return None if found and not found.stated and is_cut_off(text) else found


def same(extracted: str, reference: str, kind: AnswerKind) -> bool:
    """Whether two final answers mean the same, as far as it can be seen without algebra."""
    if kind == "number":
        return numerals.equal(extracted, reference)
    if kind == "choice":
        return extracted.strip().upper() == reference.strip().upper()
    return expressions.equal(extracted, reference)


def grade(
    text: str,
    reference: str,
    kind: AnswerKind,
    choices: Sequence[str] = (),
    equivalent: Equivalent | None = None,
) -> Judgement:
    """The verdict on a text. `equivalent` is asked about expressions that do not look the same."""
    found = extract(text, kind, choices)
    if found is None:
        return Judgement("unparseable", None, stated=False)
    right: bool | None = same(found.answer, reference, kind)
    if not right and equivalent is not None:
        right = equivalent(reference, found.answer)
    return Judgement(
        "right" if right else "wrong", found.answer, found.stated, undecided=right is None
    )
