"""The rules of the warnings, by hand-made lines."""

from collections.abc import Iterable
from typing import Any

import pytest

from sirt_ray.config.training import RefineConfig
from sirt_ray.core.encoding import TokenSequence, TrainingExample
from sirt_ray.training import metrics
from sirt_ray.training.metrics import Line
from sirt_ray.training.objectives import Refinement, UnpairedRefinement


def pair(chosen: int, rejected: int, same: bool = False) -> TrainingExample:
    """Completions of so many tokens, which differ or are the `same`."""
    sides = ((7, chosen), (7 if same else 8, rejected))
    sequences = tuple(TokenSequence((1,), (token,) * count) for token, count in sides)
    return TrainingExample("q", sequences)


def line(step: int, fall: float = 0.0, beta: float = 0.1) -> dict[str, Any]:
    """Chosen completions of 20 tokens in the mean have lost `fall` nats each."""
    return {"step": step, "chosen_reward": -beta * fall, "chosen_length": 20.0}


def test_length_ratio_is_of_tokens_over_all_pairs() -> None:
    assert metrics.length_ratio([pair(30, 5), pair(10, 15)]) == 2.0


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.79, True), (0.8, False), (1.25, False), (1.3, True)]
)
def test_lengths_drift_outside_their_range(ratio: float, expected: bool) -> None:
    assert metrics.length_drifts(ratio) == expected


def falling(falls: Iterable[float], beta: float = 0.1) -> list[dict[str, Any]]:
    return [line(step, fall, beta) for step, fall in enumerate(falls, start=1)]


def test_fall_is_in_nats_a_token_in_the_middle_of_the_newest_lines() -> None:
    rising = falling(range(12), beta=0.5)
    # The last ten lost 2, 3, ... 11 nats.
    assert metrics.chosen_logp_drop(rising, beta=0.5) == pytest.approx(6.5 / 20)
    # Five lines lost 8 nats; before them there were five without a fall.
    assert metrics.chosen_logp_drop(falling([8.0] * 5), beta=0.1) == pytest.approx(4.0 / 20)
    assert metrics.chosen_logp_drop(falling([-8.0] * 10), beta=0.1) == pytest.approx(-8.0 / 20)


def test_a_few_bad_steps_are_no_fall_and_a_lasting_one_is() -> None:
    settings, pairs = Refinement(RefineConfig()), [pair(4, 4)]
    assert settings.warnings(falling([0.0] * 8 + [900.0] * 2), pairs) == ()
    assert settings.warnings(falling([1.9] * 10), pairs) == ()
    assert settings.warnings(falling([2.1] * 10), pairs) == ("chosen_logp_falls",)


@pytest.mark.parametrize(
    ("changed", "drifts"),
    [
        ({}, True),
        ({"loss": "robust"}, True),
        ({"length_normalised": True}, False),
        ({"loss": "simpo"}, False),
        ({"loss": "orpo"}, False),
    ],
)
def test_lengths_matter_to_losses_that_sum_over_tokens(
    changed: dict[str, Any], drifts: bool
) -> None:
    settings = Refinement(RefineConfig(**changed))
    assert settings.warnings([line(1)], [pair(30, 5)]) == (("length_drift",) if drifts else ())
    assert settings.warnings([line(1), line(2)], [pair(30, 5)]) == ()
    assert settings.warnings([line(1)], [pair(5, 5)]) == ()


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "simpo", "orpo"])
@pytest.mark.parametrize(("same", "warned"), [(4, True), (3, True), (2, False), (0, False)])
def test_pairs_that_prefer_a_text_to_itself_are_named(loss: Any, same: int, warned: bool) -> None:
    settings = Refinement(RefineConfig(loss=loss))
    pairs = [pair(5, 5, same=number < same) for number in range(4)]
    assert settings.warnings([line(1)], pairs) == (("identical_pairs",) if warned else ())
    assert settings.warnings([line(1), line(2)], pairs) == ()


@pytest.mark.parametrize(("undesirable", "warned"), [((7, 7), True), ((8, 9), False)])
def test_so_are_single_completions_that_are_on_both_sides(
    undesirable: tuple[int, int], warned: bool
) -> None:
    settings = UnpairedRefinement(RefineConfig(loss="kto"), is_reference=True)
    sides = [(7, True), *((token, False) for token in undesirable)]
    examples = [
        TrainingExample("q", (TokenSequence((1,), (token,)),), desirable=desirable)
        for token, desirable in sides
    ]
    found = settings.warnings([{"step": 1}], examples)
    assert found == (("identical_pairs",) if warned else ())


def test_a_warning_keeps_the_step_that_raised_it() -> None:
    before: Line | None = None
    seen: list[dict[str, int]] = []
    for step, names in enumerate([["a"], [], ["b"], ["a", "b"]], start=1):
        seen.append(metrics.raised_warnings(before, names, step))
        before = {"step": step, "warnings": seen[-1]}
    assert seen == [{"a": 1}, {"a": 1}, {"a": 1, "b": 3}, {"a": 1, "b": 3}]
    assert metrics.raised_warnings(None, [], 1) == {}


def test_the_record_says_what_to_do_about_each() -> None:
    described = metrics.warning_records({"length_drift": 1, "chosen_logp_falls": 40})
    assert [(one["name"], one["step"]) for one in described] == [
        ("length_drift", 1),
        ("chosen_logp_falls", 40),
    ]
    assert "refine.length_normalised" in described[0]["message"]
    assert "refine.nll_weight" in described[1]["message"]
