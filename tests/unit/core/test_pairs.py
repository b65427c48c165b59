"""The pair rules, by hand."""

import random

import pytest

from sirt_ray.config.training import PairsConfig
from sirt_ray.core.pairs import make_pairs
from sirt_ray.types import Graded
from tests.helpers.fakes import graded

SAMPLES = [
    graded("a", 0, ids=(10, 2)),
    graded("a", 1, ids=(11, 2)),
    graded("a", 2, ids=(12, 2), verdict="wrong"),
    graded("a", 3, ids=(13, 2), verdict="unparseable"),
    graded("a", 4, ids=(14,), stop="length"),
    graded("a", 0, kind="plain", ids=(20, 2), verdict="wrong"),
    graded("a", 1, kind="plain", ids=(21, 2), verdict="right"),
]


def ids(samples: list[Graded], config: PairsConfig) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    pairs, _ = make_pairs(samples, config, "0/1")
    return {
        (p.chosen.completion.completion_ids, p.rejected.completion.completion_ids)
        for p in pairs
        if p.rejected is not None
    }


def test_the_papers_rule_prefers_own_right_cot_answers_to_own_plain_answers() -> None:
    made = ids(SAMPLES, PairsConfig(rule="dpo_cot", max_per_question=9))
    assert {chosen for chosen, _ in made} == {(10, 2), (11, 2)}
    assert {rejected for _, rejected in made} == {(20, 2), (21, 2)}


def test_plain_answers_can_be_rejected_only_when_wrong() -> None:
    config = PairsConfig(rule="dpo_cot", plain_rejected="wrong", max_per_question=9)
    assert ids(SAMPLES, config) == {((10, 2), (20, 2)), ((11, 2), (20, 2))}


def test_correctness_prefers_right_to_wrong_and_leaves_the_unparseable_out() -> None:
    config = PairsConfig(rule="correctness", max_per_question=9)
    assert ids(SAMPLES, config) == {((10, 2), (12, 2)), ((11, 2), (12, 2))}


def test_the_unparseable_can_be_rejected_by_setting() -> None:
    config = PairsConfig(rule="correctness", unparseable_rejected=True, max_per_question=9)
    assert {rejected for _, rejected in ids(SAMPLES, config)} == {(12, 2), (13, 2)}


def test_both_is_the_union() -> None:
    each = [
        ids(SAMPLES, PairsConfig(rule=r, max_per_question=9)) for r in ("dpo_cot", "correctness")
    ]
    assert ids(SAMPLES, PairsConfig(rule="both", max_per_question=9)) == each[0] | each[1]


@pytest.mark.parametrize("most", [1, 2])
def test_a_question_gives_no_more_than_its_cap(most: int) -> None:
    pairs, counts = make_pairs(
        SAMPLES, PairsConfig(rule="correctness", max_per_question=most), "0/1"
    )
    assert len(pairs) == counts["pairs"] == most


def test_both_sides_are_scored_after_the_prompt_with_the_trigger() -> None:
    (pair,), _ = make_pairs(SAMPLES, PairsConfig(rule="dpo_cot"), "0/1")
    assert pair.prompt_ids == (1, 5)
    assert pair.rejected is not None and pair.rejected.completion.prompt_ids == (1, 6)


def test_the_same_tokens_are_never_chosen_and_rejected() -> None:
    samples = [graded("a", 0, ids=(10, 2)), graded("a", 0, kind="plain", ids=(10, 2))]
    pairs, counts = make_pairs(samples, PairsConfig(rule="dpo_cot"), "0/1")
    assert pairs == []
    assert counts["dpo_cot_without_rejected"] == 1


def test_every_question_and_completion_is_accounted_for() -> None:
    samples = [
        *SAMPLES,
        graded("a", 5, ids=(10, 2)),
        graded("b", 0, verdict="wrong"),
        graded("c", 0),
    ]
    _, counts = make_pairs(samples, PairsConfig(rule="correctness"), "0/1")
    assert counts == {
        "questions": 3,
        "questions_paired": 1,
        "pairs": 1,
        "completions": 10,
        "completions_truncated": 1,
        "completions_repeated": 1,
        "completions_unparseable": 1,
        "correctness_without_right": 1,
        "correctness_without_rejected": 1,
    }


def test_the_seed_and_the_completions_alone_decide() -> None:
    many = [
        graded("a", i, ids=(i, 2), verdict="right" if i % 2 else "wrong") for i in range(10, 30)
    ]
    config = PairsConfig(rule="correctness", max_per_question=3)
    first = make_pairs(many, config, "0/1")
    random.Random(3).shuffle(many)
    assert make_pairs(many, config, "0/1") == first
    assert make_pairs(many, config, "0/2") != first


SHOWN = graded("a", ids=(90, 2), text=" as the teacher wrote")


def test_spin_prefers_the_demonstration_to_any_own_cot_answer() -> None:
    config = PairsConfig(rule="spin", max_per_question=9)
    pairs, counts = make_pairs([*SAMPLES, graded("b", 0)], config, "0/1", [SHOWN])
    assert {p.chosen.completion.completion_ids for p in pairs} == {(90, 2)}
    rejected = {p.rejected.completion.completion_ids for p in pairs if p.rejected}
    assert rejected == {(10, 2), (11, 2), (12, 2), (13, 2)}
    assert counts["spin_without_demonstration"] == 1


def test_a_sample_that_is_the_demonstration_is_not_rejected() -> None:
    same = graded("a", 0, ids=(90, 2))
    pairs, counts = make_pairs([same], PairsConfig(rule="spin"), "0/1", [SHOWN])
    assert pairs == [] and counts["spin_without_rejected"] == 1


def test_right_answers_alone_are_imitated_once_each() -> None:
    config = PairsConfig(rule="right", max_per_question=9)
    pairs, counts = make_pairs([*SAMPLES, graded("b", verdict="wrong")], config, "0/1")
    assert {p.chosen.completion.completion_ids for p in pairs} == {(10, 2), (11, 2)}
    assert all(p.rejected is None for p in pairs)
    assert counts["right_without_right"] == 1 and counts["questions_paired"] == 1


def test_a_demonstration_stands_beside_the_capped_right_answers() -> None:
    config = PairsConfig(rule="right", with_demonstrations=True, max_per_question=1)
    pairs, _ = make_pairs(SAMPLES, config, "0/1", [SHOWN])
    assert [p.chosen for p in pairs][1:] == [SHOWN] and len(pairs) == 2
    nothing_right = [graded("a", verdict="wrong")]
    pairs, _ = make_pairs(nothing_right, config, "0/1", [SHOWN])
    assert [p.chosen for p in pairs] == [SHOWN]


def test_a_demonstration_counts_among_what_may_be_chosen() -> None:
    config = PairsConfig(rule="correctness", with_demonstrations=True, max_per_question=9)
    pairs, _ = make_pairs(SAMPLES, config, "0/1", [SHOWN])
    assert {p.chosen.completion.completion_ids for p in pairs} == {(10, 2), (11, 2), (90, 2)}
