"""Stage 3: the student's graded answers -> preference pairs.

`dpo_cot` (DPO_CoT, the paper's section 2.2 and appendix B): a right CoT-Answer is preferred to the
student's own Answer to the plain prompt. `correctness` (Iterative RPO): a right CoT-Answer is
preferred to a wrong one. `both`: the union. `spin` (SPIN): the demonstration is preferred to the
student's own CoT-Answer. `right` (RFT, STaR, ReST-EM): right CoT-Answers, over nothing.

`path.py:function`: one's own (`own_pairs.py`).

Never chosen nor rejected: a completion that was cut off, and one whose tokens stand on the other
side already. Which pairs are made depends on the seed and the completions alone.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from sirt_ray.config.training import RULES, PairsConfig
from sirt_ray.types import Graded, PreferencePair
from sirt_ray.user_code import UserFunction

# FOLDED core.own_pairs: A pair rule of one's own: what it is asked, and what is taken of its answer.
#
# It is called once for each question, with the student's finished, distinct completions (and with the
# demonstration, where the job says so), and draws from `rng` alone, so that the same completions make
# the same pairs.

_WANTED = (
    "an iterable of (chosen, rejected), each of them one of the answers that it was given and their"
    " tokens different"
)
_ASKED_TWICE = 4
"""Of the first questions a rule is asked again: one that draws from elsewhere than its `rng` would
make other pairs on every run."""


class CustomPairRule:
    """What a rule is like::

    def right_over_wrong(answers: list[Graded], rng: random.Random):
        right = [a for a in answers if a.verdict == "right"]
        wrong = [a for a in answers if a.verdict == "wrong"]
        rng.shuffle(wrong)
        return zip(right, wrong)
    """

    def __init__(self, code: UserFunction) -> None:
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


def make_pairs(
    graded: Iterable[Graded],
    config: PairsConfig,
    seed: str,
    demonstrations: Iterable[Graded] = (),
    own: CustomPairRule | None = None,
) -> tuple[list[PreferencePair], dict[str, int]]:
    """At most `config.max_per_question` pairs for each question and rule.

    `seed` names the run's seed and the round. `demonstrations`, one for a question at most and in
    the student's own token ids, are what a rule or `config.with_demonstrations` chooses. `own`
    stands in the place of a rule of ours. Returns the pairs in the order of their questions, and
    how many questions and completions went which way, by reason.
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
        if own is not None:
            answers = usable if demonstration is None else [*usable, demonstration]
            made += _own_pairs(own, question_id, answers, config, seed, counts)
        for rule in RULES[config.rule] if own is None else ():
            sides = _sides(rule, usable, config, demonstration)
            made += _pair_question(question_id, rule, sides, config, seed, counts)
        pairs += made
        counts["questions_paired"] += bool(made)
    counts["pairs"] = len(pairs)
    return pairs, dict(counts)


def _usable(samples: Iterable[Graded], config: PairsConfig, counts: Counter[str]) -> list[Graded]:
    """Finished, distinct completions in a stable order; the others are counted."""
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
    """What a rule may choose and reject for one question, no tokens twice."""

    chosen: list[Graded]
    rejected: list[Graded]
    demonstration: Graded | None
    """Chosen beside the drawn ones (`right`)."""


def _sides(
    rule: str, usable: Sequence[Graded], config: PairsConfig, demonstration: Graded | None
) -> _Sides:
    chosen = [g for g in usable if g.completion.prompt_kind == "cot" and g.verdict == "right"]
    if rule == "spin":
        chosen = []
    beside = None
    if demonstration is not None:
        shown = demonstration.completion.completion_ids
        chosen = [g for g in chosen if g.completion.completion_ids != shown]
        if rule == "right":
            beside = demonstration
        else:
            chosen.append(demonstration)
    taken = {g.completion.completion_ids for g in chosen}
    rejected = [
        g
        for g in usable
        if _may_be_rejected(g, rule, config) and g.completion.completion_ids not in taken
    ]
    return _Sides(chosen, rejected, beside)


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
    # The shorter side is used again from its start: all combinations below the longer one's length
    # differ.
    total = min(config.max_per_question, max(len(chosen), len(rejected)))
    return [_pair(rule, chosen[i % len(chosen)], rejected[i % len(rejected)]) for i in range(total)]


def _own_pairs(
    own: CustomPairRule,
    question_id: str,
    answers: Sequence[Graded],
    config: PairsConfig,
    seed: str,
    counts: Counter[str],
) -> list[PreferencePair]:
    """The first pairs of one's own rule, which may say less than all there are."""
    sides = own.sides(question_id, answers, seed)
    counts["questions_no_own_pair"] += not sides
    counts["pairs_rank_above_max_per_question"] += max(0, len(sides) - config.max_per_question)
    return [_pair("own", *side) for side in sides[: config.max_per_question]]


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
