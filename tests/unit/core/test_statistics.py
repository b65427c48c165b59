"""Standard errors, tests and estimators, by hand."""

import math
import random
from itertools import combinations

import pytest

from sirt_ray.core.statistics import (
    bootstrap_interval,
    majority,
    mcnemar,
    mean_paired,
    over_seeds,
    paired,
    pass_at_k,
    proportion_stderr,
)


def test_the_standard_error_of_an_accuracy() -> None:
    assert proportion_stderr(20, 100) == pytest.approx(0.04)
    assert proportion_stderr(0, 0) == 0.0


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 5, 2 / 32),
        (5, 0, 2 / 32),
        (5, 1, 2 * (1 + 6) / 64),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_counts_the_lower_tail_twice(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_mcnemar_of_thousands_is_near_the_normal_one() -> None:
    z = (7200 - 7000 - 1) / math.sqrt(14200)
    assert mcnemar(7000, 7200) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


def test_a_paired_comparison_looks_at_each_question() -> None:
    before = dict(zip("abcde", (True, True, False, False, False), strict=True))
    after = dict(zip("abcde", (True, False, True, True, False), strict=True))
    found = paired(before, after)
    assert (found.n, found.gained, found.lost) == (5, 2, 1)
    assert found.difference == pytest.approx(0.2)
    assert found.p_value == 1.0
    assert found.low < 0.2 < found.high
    assert paired(before, after) == found


@pytest.mark.parametrize("other", [{"b": True}, {"a": True, "b": True}])
def test_other_questions_are_no_pair(other: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="same questions"):
        paired({"a": True}, other)
    with pytest.raises(ValueError, match="at least one"):
        paired({}, {})


def test_the_interval_is_that_of_questions_drawn_with_replacement() -> None:
    rng, outcomes = random.Random(0), [1] * 12 + [-1] * 4 + [0] * 24
    drawn = sorted(sum(rng.choices(outcomes, k=40)) / 40 for _ in range(4000))
    low, high = bootstrap_interval(12, 4, 40)
    # Both are multiples of 1/40: one step apart at most.
    assert low == pytest.approx(drawn[100], abs=0.026)
    assert high == pytest.approx(drawn[3900], abs=0.026)


def test_the_interval_of_many_questions_is_near_the_normal_one() -> None:
    half = 1.96 * math.sqrt(100 + 60 - 40**2 / 400) / 400
    assert bootstrap_interval(100, 60, 400) == pytest.approx((0.1 - half, 0.1 + half), abs=0.006)
    assert bootstrap_interval(0, 0, 9) == (0.0, 0.0)
    assert bootstrap_interval(9, 0, 9) == (1.0, 1.0)


def answered(gained: int, lost: int, n: int) -> tuple[dict[str, bool], dict[str, bool]]:
    before = {str(row): gained <= row < gained + lost for row in range(n)}
    return before, {str(row): row < gained for row in range(n)}


def test_a_mean_over_benchmarks_counts_each_the_same_and_resamples_each_by_itself() -> None:
    small, large = paired(*answered(60, 20, 100)), paired(*answered(100, 300, 2000))
    found = mean_paired([small, large])
    assert found.difference == pytest.approx((0.4 - 0.1) / 2)

    def variance(gained: int, lost: int, n: int) -> float:
        return ((gained + lost) / n - ((gained - lost) / n) ** 2) / n

    half = 1.96 * math.sqrt(variance(60, 20, 100) + variance(100, 300, 2000)) / 2
    assert (found.low, found.high) == pytest.approx((0.15 - half, 0.15 + half), abs=0.004)
    assert mean_paired([small]).low == pytest.approx(small.low)
    with pytest.raises(ValueError, match="one at least"):
        mean_paired([])


def test_seeds_spread_by_their_sample_deviation() -> None:
    two = over_seeds([0.5, 0.7])
    assert (two.mean, two.stderr) == pytest.approx((0.6, 0.1))
    assert two.high - two.mean == pytest.approx(1.2706)
    three = over_seeds([1, 2, 3])
    assert three.stderr == pytest.approx(1 / math.sqrt(3))
    assert three.mean - three.low == pytest.approx(4.303 / math.sqrt(3))
    with pytest.raises(ValueError, match="two values"):
        over_seeds([0.5])


@pytest.mark.parametrize(("freedom", "quantile"), [(9, 2.262), (10, 2.228), (30, 2.042)])
def test_more_seeds_come_near_the_normal_distribution(freedom: int, quantile: float) -> None:
    found = over_seeds(list(range(freedom + 1)))
    assert (found.high - found.mean) / found.stderr == pytest.approx(quantile, abs=0.001)


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    samples = (True, True, False, False, False)
    for k in range(1, 6):
        draws = list(combinations(samples, k))
        assert pass_at_k(5, 2, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert pass_at_k(4, 0, 4) == 0.0


@pytest.mark.parametrize(("n", "right", "k"), [(4, 1, 5), (4, 5, 1), (4, 1, 0), (4, -1, 1)])
def test_pass_at_k_needs_enough_samples(n: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {n}"):
        pass_at_k(n, right, k)


@pytest.mark.parametrize(
    ("samples", "share"),
    [
        ([("4", True), ("5", False), ("4", True)], 1.0),
        ([("4", True), ("5", False), ("5", False)], 0.0),
        ([("4", True), ("5", False)], 0.5),
        ([("4", True), ("5", False), ("6", False)], 1 / 3),
        ([("1/2", True), ("0.5", True), ("5", False)], 1.0),
        ([("4", True), (None, False), (None, False)], 1.0),
        ([(None, False)], 0.0),
        ([], 0.0),
    ],
)
def test_the_most_frequent_answer_wins(
    samples: list[tuple[str | None, bool]], share: float
) -> None:
    assert majority(samples) == pytest.approx(share)
