"""Accuracies by hand."""

from typing import Any

import pytest

from sirt_ray.config.training import RefineConfig
from sirt_ray.core.scoring import (
    Evaluation,
    keeps,
    read_evaluation,
    score_of,
    scores_to_json,
    tally,
)
from sirt_ray.types import Score


def test_a_standard_error_is_the_binomial_one() -> None:
    score = score_of(3, 4)
    assert (score.accuracy, score.n) == (0.75, 4)
    assert score.stderr == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert score_of(0, 0).stderr == 0.0


def test_unanswered_questions_count_as_not_right() -> None:
    scores = tally([("a", "cot", True), ("a", "cot", False), ("b", "plain", False)])
    assert scores == {"a": {"cot": score_of(1, 2)}, "b": {"plain": score_of(0, 1)}}


def test_an_evaluation_survives_its_record_and_pools_what_is_held_out() -> None:
    test = tally([("a", "cot", True), ("a", "plain", False)])
    validation = tally([("a", "cot", True), ("a", "cot", True), ("b", "cot", False)])
    stored = {"test": scores_to_json(test), "validation": scores_to_json(validation)}
    evaluation = read_evaluation(stored, ["a", "b"])
    assert evaluation.test == test
    assert evaluation.held_out == score_of(2, 3)
    assert read_evaluation(stored, ["b"]).held_out == score_of(0, 1)


def test_only_a_fall_beyond_the_noise_is_rolled_back() -> None:
    def keeps_after(before: Score, after: Score, **settings: Any) -> bool:
        config = RefineConfig(roll_back_stderrs=2.0, **settings)
        return keeps(Evaluation({}, before), Evaluation({}, after), config)

    assert keeps_after(score_of(60, 100), score_of(50, 100))
    assert not keeps_after(score_of(60, 100), score_of(40, 100))
    assert keeps_after(score_of(60, 100), score_of(40, 100), roll_back=False)
    assert keeps_after(score_of(40, 100), score_of(60, 100))
    assert keeps_after(score_of(0, 0), score_of(0, 0))


def test_unknown_scores_do_not_roll_back() -> None:
    known = Evaluation({}, score_of(60, 100))
    assert keeps(known, None, RefineConfig())
    assert keeps(None, known, RefineConfig())
