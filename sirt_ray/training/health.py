"""Signs of a training that goes wrong while its loss falls. Each has a name, a rule and words.

A warning is raised once, at the first step whose line meets the rule; that line and all later ones
name it with that step. The rules look at lines and training data only, so a resumed training raises
the same warnings at the same steps.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sirt_ray.core.encoding import TrainingExample

Line = Mapping[str, Any]
"""Of `metrics.jsonl`."""

WINDOW = 10
"""Lines that are taken together."""

LARGEST_FALL = 0.1
"""Nats for each token: what a chosen completion may lose. The student's perplexity on the texts it
is to prefer has risen by a tenth then."""

LENGTH_RATIOS = (0.8, 1.25)
"""Mean tokens of chosen to those of rejected completions, between which length tells little."""

WORDS = {
    "chosen_logp_falls": (
        "the chosen completions have become less likely than before the training, by more than"
        f" {LARGEST_FALL} nats a token in the median of {WINDOW} steps. A margin that grows all the"
        " same does so by lowering both sides, and probability goes to texts that are in no pair."
        " Add refine.nll_weight (1 is usual), or lower refine.learning_rate, or raise refine.beta"
    ),
    "length_drift": (
        "the chosen completions are much longer or much shorter than the rejected ones (mean tokens"
        f" outside {LENGTH_RATIOS[0]} to {LENGTH_RATIOS[1]} times theirs). The loss sums over"
        " tokens, so it can fall by length alone. Where reasoning is preferred to bare answers"
        " (pairs.rule dpo_cot) the difference is meant; else set refine.length_normalised, or"
        " choose the loss simpo, or pairs.rule correctness"
    ),
}
"""What it is, why it matters, what to do."""


def length_ratio(examples: Iterable[TrainingExample]) -> float:
    """Tokens of the chosen completions over those of the rejected ones."""
    chosen = rejected = 0
    for example in examples:
        first, second = example.sequences
        chosen += len(first.completion_ids)
        rejected += len(second.completion_ids)
    return chosen / rejected


def drifts(ratio: float) -> bool:
    return not LENGTH_RATIOS[0] <= ratio <= LENGTH_RATIOS[1]


def chosen_fall(recent: Sequence[Line], beta: float) -> float:
    """By how many nats a token the chosen completions are less likely than before the first step:
    the median of the newest lines, as a single step may be far off. Lines that are not there yet
    count as no fall.

    Measured against the reference, which the student was then: two batches have other completions,
    but a completion is always compared with itself.
    """
    falls = [-line["chosen_reward"] / beta / line["chosen_length"] for line in recent[-WINDOW:]]
    return statistics.median([0.0] * (WINDOW - len(falls)) + falls)


def raised(before: Line | None, names: Iterable[str], step: int) -> dict[str, int]:
    """Warning -> the step that raised it, for the line of `step`. `before`: the line before it."""
    already: Mapping[str, int] = (before or {}).get("warnings", {})
    return {**dict.fromkeys(names, step), **already}


def described(warnings: Mapping[str, int]) -> list[dict[str, Any]]:
    """For the artifact's record."""
    return [{"name": name, "step": step, "message": WORDS[name]} for name, step in warnings.items()]
