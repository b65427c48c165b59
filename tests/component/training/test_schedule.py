"""Learning rates by hand."""

from typing import Any

import pytest

from sirt_ray.config.training import TrainingConfig
from sirt_ray.training.fit import learning_rate


def rates(steps: int, **changed: Any) -> list[float]:
    config = TrainingConfig(learning_rate=1.0, batch_size=1, epochs=1, **changed)
    return [learning_rate(config, step, steps) for step in range(1, steps + 1)]


def test_constant() -> None:
    assert rates(3, schedule="constant") == [1.0, 1.0, 1.0]


def test_linear_falls_in_equal_steps_and_never_to_zero() -> None:
    assert rates(4, schedule="linear") == pytest.approx([4 / 5, 3 / 5, 2 / 5, 1 / 5])


def test_cosine_passes_the_middle_at_half() -> None:
    falling = rates(3, schedule="cosine")
    assert falling[1] == pytest.approx(0.5)
    assert falling[0] + falling[2] == pytest.approx(1.0)
    assert falling[2] > 0


def test_warm_up_rises_to_the_peak_at_its_last_step() -> None:
    assert rates(8, warmup_steps=4)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates(8, warmup_steps=4)[4] < 1.0


def test_the_larger_warm_up_counts() -> None:
    assert rates(8, warmup_ratio=0.5, warmup_steps=2) == rates(8, warmup_steps=4)


def test_a_training_shorter_than_its_warm_up_only_rises() -> None:
    assert rates(2, warmup_steps=100) == pytest.approx([0.01, 0.02])
