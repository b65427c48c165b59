"""Which evaluation is the best, and when a training stops early."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace

import pytest

from sirt_ray.config.training import TuneConfig
from sirt_ray.training.fit import better, out_of_patience, update_best
from sirt_ray.training.workdir import TrainingState


def after(losses: Iterable[float]) -> TrainingState:
    """One evaluation after each step."""
    state = TrainingState()
    for loss in losses:
        state = update_best(replace(state, step=state.step + 1), {"loss": loss}, "best")
    return state


def test_the_lowest_loss_is_the_best() -> None:
    state = after([3.0, 2.0, 2.5, 2.0])
    assert (state.best_step, state.stale) == (2, 2)
    assert state.best == {"loss": 2.0} and state.validation == {"loss": 2.0}
    assert after([3.0, 2.0, 2.5, 1.0]).stale == 0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0.75, 0.9), (0.5, 0.1), True),
        ((0.5, 0.1), (0.75, 0.9), False),
        ((0.5, 0.1), (0.5, 0.2), True),
        ((0.5, 0.2), (0.5, 0.2), False),
        # The same three pairs in ten, added up in another order.
        ((0.1 + 0.2, 0.2), (0.3, 0.1), False),
        ((0.3, 0.1), (0.1 + 0.2, 0.2), True),
    ],
)
def test_by_accuracy_equal_shares_are_ordered_by_the_loss(
    one: tuple[float, float], other: tuple[float, float], expected: bool
) -> None:
    first, second = ({"accuracy": accuracy, "loss": loss} for accuracy, loss in (one, other))
    assert better(first, second, "accuracy") == expected


def test_patience_ends_after_so_many_evaluations_without_a_better_one() -> None:
    patient = TuneConfig(patience=2)
    assert not out_of_patience(TrainingState(), patient)
    assert not out_of_patience(after([3.0, 2.0, 2.5]), patient)
    assert not out_of_patience(after([3.0, 3.5, 2.0, 2.5]), patient)
    assert out_of_patience(after([3.0, 2.0, 2.5, 2.1]), patient)
    assert not out_of_patience(after([3.0, 2.0, 2.5, 2.1]), TuneConfig())


def test_a_checkpoint_restores_the_state() -> None:
    state = after([3.0, 2.0, 2.5])
    assert TrainingState(**json.loads(json.dumps(asdict(state)))) == state
