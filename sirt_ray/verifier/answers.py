"""The verifier: what a text's final answer is, and whether it is right.

The same verifier filters demonstrations, grades samples for pairing, evaluates and runs in `sirt
grade`, so that a number in a table and a preference pair never disagree about what right means.

Model text is untrusted. Nothing here raises on it, executes it or needs more than linear time.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from sirt_ray.types import Judgement
from sirt_ray.verifier import choices as options
from sirt_ray.verifier import expressions, numbers, numerals
from sirt_ray.verifier.statements import FinalAnswer, is_cut_off

AnswerKind = Literal["number", "choice", "expression"]

Equivalent = Callable[[str, str], bool | None]
"""(reference, answer) -> whether the two expressions are the same by algebra; None where the
comparison takes too long."""

VERSION = "4"
"""It is increased whenever some text gets a different verdict."""

LONGEST_TEXT = 200_000
"""In characters. Only the end of a longer text is read: the final answer is there."""


def extract(text: str, kind: AnswerKind, choices: Sequence[str] = ()) -> FinalAnswer | None:
    """Return the final answer: a plain number, an option's letter, or an expression; None if there
    is none that can be read, or if several are named.

    Examples::

        extract("16 - 7 = 9, so she makes 9 * 2 = $18.00. The answer is $18.00.", "number")
            == FinalAnswer("18", stated=True)
        extract("The correct answer is: D) Venice", "choice", ("Michigan", ..., "Venice"))
            == FinalAnswer("D", stated=True)
        extract("So half of it is $\\frac{1}{2}$.", "expression")
            == FinalAnswer("\\frac{1}{2}", stated=False)
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
    """Return whether two final answers mean the same, as far as can be decided without algebra."""
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
    """Return the verdict on a text. `equivalent` compares expressions that do not look the same."""
    found = extract(text, kind, choices)
    if found is None:
        return Judgement("unparseable", None, stated=False)
    right: bool | None = same(found.answer, reference, kind)
    if not right and equivalent is not None:
        right = equivalent(reference, found.answer)
    return Judgement(
        "right" if right else "wrong", found.answer, found.stated, undecided=right is None
    )
