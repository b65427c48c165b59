"""The learning rate of each optimizer step: a pure function, so that resuming needs no state."""

import math

from sirt_ray.optimization import TrainingConfig


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Optimizer steps with a rising rate: the larger of the count and the ratio's share."""
    return max(config.warmup_steps, math.ceil(config.warmup_ratio * total_steps))


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (1 .. total_steps).

    It rises linearly to `config.learning_rate`, reached at the last warm-up step, then falls to
    just above 0 at the last step (`cosine`, `linear`) or stays (`constant`).
    """
    peak = config.learning_rate
    warmup = warmup_steps(config, total_steps)
    if step <= warmup:
        return peak * step / warmup
    if config.schedule == "constant":
        return peak
    left = (total_steps + 1 - step) / (total_steps + 1 - warmup)
    if config.schedule == "linear":
        return peak * left
    return peak * 0.5 * (1 - math.cos(math.pi * left))
