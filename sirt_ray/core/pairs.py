"""Stage 3: the student's graded answers -> preference pairs.

`dpo_cot` (DPO_CoT, the paper's section 2.2 and appendix B): a right CoT-Answer is preferred to the
student's own Answer to the plain prompt. `correctness` (Iterative RPO): a right CoT-Answer is
preferred to a wrong one. `both`: the union. `spin` (SPIN): the demonstration is preferred to the
student's own CoT-Answer. `right` (RFT, STaR, ReST-EM): right CoT-Answers, without rejected ones.

`path.py:function`: a custom rule (`CustomPairRule`).

A truncated completion is neither chosen nor rejected, nor is one whose tokens are on the other side
already. The pairs depend on the seed and the completions only.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from sirt_ray.config.training import RULES, PairsConfig
from sirt_ray.types import Graded, PreferencePair
from sirt_ray.user_code import UserFunction

_WANTED = (
    "an iterable of (chosen, rejected), each of them one of the answers that the rule was called"
    " with, and their tokens different"
)
"""The contract of a rule's return value, for error texts."""
_CALLED_TWICE = 4
"""A custom rule is called twice for so many first questions: a rule with other sources of
randomness than its `rng` would make different pairs in every run."""


class CustomPairRule:
    """A pair rule of the user, called once for each question.

    Its arguments are the student's finished, distinct completions (and the demonstration, where the
    job includes it) and a random generator, the only source of randomness that it may use, so that
    the same completions make the same pairs.

    Example::

        def right_over_wrong(answers: list[Graded], rng: random.Random):
            right = [a for a in answers if a.verdict == "right"]
            wrong = [a for a in answers if a.verdict == "wrong"]
            rng.shuffle(wrong)
            return zip(right, wrong)
    """

    def __init__(self, code: UserFunction) -> None:
        self._code = code
        self._called_twice = 0

    def sides(
        self, question_id: str, answers: Sequence[Graded], seed: str
    ) -> list[tuple[Graded, Graded]]:
        """Return the (chosen, rejected) of one question. Raises StageError if the rule fails,
        breaks the contract, or returns different pairs when it is called again."""
        sides = self._call(question_id, answers, seed)
        if self._called_twice < _CALLED_TWICE:
            self._called_twice += 1
            if self._call(question_id, answers, seed) != sides:
                about = f"question {question_id}"
                raise self._code.wrong(sides, about, "the same when it was called again")
        return sides

    def _call(
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
            valid = len(both) == 2 and {id(side) for side in both} <= known
            if not valid or _same(both[0], both[1]):
                raise self._code.wrong(cast(object, pair), about, _WANTED)
            sides.append((both[0], both[1]))
        return sides


def make_pairs(
    graded: Iterable[Graded],
    config: PairsConfig,
    seed: str,
    demonstrations: Iterable[Graded] = (),
    custom_rule: CustomPairRule | None = None,
) -> tuple[list[PreferencePair], dict[str, int]]:
    """Return at most `config.max_per_question` pairs for each question and rule, in the order of
    the questions, and the number of questions and completions by outcome.

    `seed` combines the run's seed and the round. `demonstrations`, at most one for a question and
    in the student's token ids, are chosen by a rule or by `config.with_demonstrations`.
    `custom_rule` replaces the built-in rules.
    """
    by_question: dict[str, list[Graded]] = {}
    for item in graded:
        by_question.setdefault(item.completion.question_id, []).append(item)
    demonstrated = {item.completion.question_id: item for item in demonstrations}
    pairs: list[PreferencePair] = []
    counts: Counter[str] = Counter(questions=len(by_question), pairs=0, questions_paired=0)
    for question_id, samples in by_question.items():
        usable = _usable(samples, config, counts)
        made: list[PreferencePair] = []
        demonstration = demonstrated.get(question_id)
        if custom_rule is not None:
            answers = usable if demonstration is None else [*usable, demonstration]
            made += _pairs_of_custom_rule(custom_rule, question_id, answers, config, seed, counts)
        for rule in RULES[config.rule] if custom_rule is None else ():
            sides = _sides(rule, usable, config, demonstration)
            made += _pair_question(question_id, rule, sides, config, seed, counts)
        pairs += made
        counts["questions_paired"] += bool(made)
    counts["pairs"] = len(pairs)
    return pairs, dict(counts)


def _usable(samples: Iterable[Graded], config: PairsConfig, counts: Counter[str]) -> list[Graded]:
    """Return the finished, distinct completions in a stable order; count the others."""
    seen: dict[tuple[str, tuple[int, ...]], Graded] = {}
    for item in sorted(samples, key=_order):
        done = item.completion
        counts["completions"] += 1
        if done.stop_reason == "length":
            counts["completions_truncated"] += 1
        elif seen.setdefault((done.prompt_kind, done.completion_ids), item) is not item:
            counts["completions_repeated"] += 1
        elif done.prompt_kind == "cot" and item.verdict == "unparseable":
            counts["completions_unparseable"] += 1
    return list(seen.values())


@dataclass(frozen=True, slots=True)
class _Sides:
    """What a rule may choose and reject for one question; no token sequence occurs twice."""

    chosen: list[Graded]
    rejected: list[Graded]
    demonstration: Graded | None
    """Chosen in addition to the drawn ones (`right`)."""


def _sides(
    rule: str, usable: Sequence[Graded], config: PairsConfig, demonstration: Graded | None
) -> _Sides:
    chosen = [g for g in usable if g.completion.prompt_kind == "cot" and g.verdict == "right"]
    if rule == "spin":
        chosen = []
    additional = None
    if demonstration is not None:
        shown = demonstration.completion.completion_ids
        chosen = [g for g in chosen if g.completion.completion_ids != shown]
        if rule == "right":
            additional = demonstration
        else:
            chosen.append(demonstration)
    taken = {g.completion.completion_ids for g in chosen}
    rejected = [
        g
        for g in usable
        if _may_be_rejected(g, rule, config) and g.completion.completion_ids not in taken
    ]
    return _Sides(chosen, rejected, additional)


def _may_be_rejected(graded: Graded, rule: str, config: PairsConfig) -> bool:
    kind, verdict = graded.completion.prompt_kind, graded.verdict
    if rule == "right":
        return False
    if rule == "spin":
        return kind == "cot"
    if rule == "dpo_cot":
        return kind == "plain" and (config.plain_rejected == "any" or verdict == "wrong")
    if verdict == "unparseable":
        return kind == "cot" and config.unparseable_rejected
    return kind == "cot" and verdict == "wrong"


def _pair_question(
    question_id: str,
    rule: str,
    sides: _Sides,
    config: PairsConfig,
    seed: str,
    counts: Counter[str],
) -> list[PreferencePair]:
    chosen, rejected = sides.chosen, sides.rejected
    draw = random.Random(f"{seed}/{question_id}/{rule}")
    draw.shuffle(chosen)
    draw.shuffle(rejected)
    if rule == "right":
        drawn = chosen[: config.max_per_question]
        imitated = drawn if sides.demonstration is None else [*drawn, sides.demonstration]
        counts["right_without_right"] += not imitated
        return [_pair(rule, item, None) for item in imitated]
    if not chosen or not rejected:
        missing = "rejected" if chosen else "demonstration" if rule == "spin" else "right"
        counts[f"{rule}_without_{missing}"] += 1
        return []
    # The shorter side is repeated: all combinations up to the length of the longer side differ.
    total = min(config.max_per_question, max(len(chosen), len(rejected)))
    return [_pair(rule, chosen[i % len(chosen)], rejected[i % len(rejected)]) for i in range(total)]


def _pairs_of_custom_rule(
    custom_rule: CustomPairRule,
    question_id: str,
    answers: Sequence[Graded],
    config: PairsConfig,
    seed: str,
    counts: Counter[str],
) -> list[PreferencePair]:
    """Return the first pairs of a custom rule."""
    sides = custom_rule.sides(question_id, answers, seed)
    counts["questions_no_own_pair"] += not sides
    counts["pairs_rank_above_max_per_question"] += max(0, len(sides) - config.max_per_question)
    return [_pair("own", *side) for side in sides[: config.max_per_question]]


def _pair(rule: str, chosen: Graded, rejected: Graded | None) -> PreferencePair:
    done = chosen.completion
    return PreferencePair(
        question_id=done.question_id,
        benchmark=done.benchmark,
        rule=rule,
        prompt=done.prompt,
        prompt_ids=done.prompt_ids,
        chosen=chosen,
        rejected=rejected,
    )


def _order(graded: Graded) -> tuple[str, int]:
    return graded.completion.prompt_kind, graded.completion.sample_index


def _same(chosen: Graded, rejected: Graded) -> bool:
    return chosen.completion.completion_ids == rejected.completion.completion_ids
