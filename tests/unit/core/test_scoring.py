"""Accuracies by hand."""

import pytest

from sirt_ray.core.scoring import (
    dropped_significantly,
    read_evaluation,
    score_of,
    scores_to_json,
    tally,
)


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


def test_only_a_fall_beyond_the_noise_counts() -> None:
    assert not dropped_significantly(score_of(60, 100), score_of(50, 100), 2.0)
    assert dropped_significantly(score_of(60, 100), score_of(40, 100), 2.0)
    assert not dropped_significantly(score_of(40, 100), score_of(60, 100), 2.0)
    assert not dropped_significantly(score_of(0, 0), score_of(0, 0), 2.0)
