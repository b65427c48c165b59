"""Which weights of a training are chosen, and when one that no longer improves ends.

Pure functions of the evaluations so far. They stand in `State`, which every checkpoint holds, so a
resumed training ends at the step where an uninterrupted one does.
"""

from collections.abc import Mapping
from dataclasses import replace

from sirt_ray.optimization import TrainingConfig
from sirt_ray.training.workdir import State

_DIGITS = 9
"""Of an accuracy. It is a sum of shares, whose last bits depend on their order."""


def judged(state: State, found: Mapping[str, float], choose: str) -> State:
    """`state` with the evaluation `found` after `state.step`; it is the best so far where
    `best_step` is that step."""
    state = replace(state, validation=dict(found))
    if state.best is None or better(found, state.best, choose):
        return replace(state, best=dict(found), best_step=state.step, stale=0)
    return replace(state, stale=state.stale + 1)


def better(one: Mapping[str, float], other: Mapping[str, float], choose: str) -> bool:
    """Whether `one` is to be chosen: by `accuracy` first where that is asked, then by the loss."""
    if choose == "accuracy":
        ahead = round(one["accuracy"], _DIGITS) - round(other["accuracy"], _DIGITS)
        if ahead:
            return ahead > 0
    return one["loss"] < other["loss"]


def out_of_patience(state: State, config: TrainingConfig) -> bool:
    return config.patience is not None and state.stale >= config.patience


def why_stopped(state: State, config: TrainingConfig) -> str:
    """For the record of a training that was out of patience."""
    what = "higher accuracy" if config.choose == "accuracy" else "lower loss"
    return (
        f"no {what} on held-out questions in {state.stale} evaluations after step {state.best_step}"
    )
