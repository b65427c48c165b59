"""A pair rule of one's own: what it is asked, and what is taken of its answer.

It is called once for each question, with the student's finished, distinct completions (and with the
demonstration, where the job says so), and draws from `rng` alone, so that the same completions make
the same pairs.
"""

import random
from collections.abc import Sequence
from typing import cast

from sirt_ray.types import Graded
from sirt_ray.user_code import OwnCode

_WANTED = (
    "an iterable of (chosen, rejected), each of them one of the answers that it was given and their"
    " tokens different"
)
_ASKED_TWICE = 4
"""Of the first questions a rule is asked again: one that draws from elsewhere than its `rng` would
make other pairs on every run."""


class OwnRule:
    """What a rule is like::

    def right_over_wrong(answers: list[Graded], rng: random.Random):
        right = [a for a in answers if a.verdict == "right"]
        wrong = [a for a in answers if a.verdict == "wrong"]
        rng.shuffle(wrong)
        return zip(right, wrong)
    """

    def __init__(self, code: OwnCode) -> None:
        self._code = code
        self._asked = 0

    def sides(
        self, question_id: str, answers: Sequence[Graded], seed: str
    ) -> list[tuple[Graded, Graded]]:
        """(chosen, rejected) of one question. Raises StageError where the rule fails, does not keep
        to the contract, or gives other pairs when it is asked again."""
        sides = self._ask(question_id, answers, seed)
        if self._asked < _ASKED_TWICE:
            self._asked += 1
            if self._ask(question_id, answers, seed) != sides:
                about = f"question {question_id}"
                raise self._code.wrong(sides, about, "the same when it was asked again")
        return sides

    def _ask(
        self, question_id: str, answers: Sequence[Graded], seed: str
    ) -> list[tuple[Graded, Graded]]:
        rng = random.Random(f"{seed}/{question_id}/own")
        about = f"question {question_id}"
        made: list[object] = self._code.call(list(answers), rng, about=about, listed=True)
        known = {id(answer) for answer in answers}
        sides: list[tuple[Graded, Graded]] = []
        for pair in made:
            both = (
                cast("Sequence[Graded]", pair) if isinstance(pair, tuple | list) else list[Graded]()
            )
            given = len(both) == 2 and {id(side) for side in both} <= known
            if not given or _same(both[0], both[1]):
                raise self._code.wrong(cast(object, pair), about, _WANTED)
            sides.append((both[0], both[1]))
        return sides


def _same(chosen: Graded, rejected: Graded) -> bool:
    return chosen.completion.completion_ids == rejected.completion.completion_ids
