"""Accuracies, their standard errors, and when a round made the student worse."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sirt_ray.config.training import RefineConfig
from sirt_ray.core.statistics import proportion_stderr
from sirt_ray.types import PromptKind, Score, Scores


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of one model."""

    test: Scores
    held_out: Score
    """With the trigger, on the validation questions of the benchmarks that are trained on,
    pooled."""


def score_of(right: int, n: int) -> Score:
    """The score of `right` among `n` questions, with its binomial standard error."""
    return Score(right / n if n else 0.0, proportion_stderr(right, n), n)


def keeps(before: Evaluation | None, after: Evaluation | None, settings: RefineConfig) -> bool:
    """Whether a round's candidate is kept: its held-out accuracy did not fall by more than
    `roll_back_stderrs` standard errors of the difference. Unknown scores, as in a dry run, do not
    speak against it."""
    if not settings.roll_back or before is None or after is None:
        return True
    old, new = before.held_out, after.held_out
    noise = settings.roll_back_stderrs * math.hypot(old.stderr, new.stderr)
    return old.accuracy - new.accuracy <= noise


def read_evaluation(stored: Mapping[str, Any], in_domain: Collection[str]) -> Evaluation:
    """Return the scores in the counts of an evaluation artifact."""
    validation = scores_from(stored.get("validation", {}))
    held_out = [kinds["cot"] for name, kinds in validation.items() if name in in_domain]
    right = sum(round(score.accuracy * score.n) for score in held_out)
    n = sum(score.n for score in held_out)
    return Evaluation(scores_from(stored["test"]), score_of(right, n))


def scores_from(stored: Mapping[str, Mapping[Any, Mapping[str, Any]]]) -> Scores:
    return {
        benchmark: {kind: Score(**score) for kind, score in kinds.items()}
        for benchmark, kinds in stored.items()
    }


def scores_to_json(scores: Scores) -> dict[str, dict[str, dict[str, Any]]]:
    """The form of `scores.json` and of an evaluation's record."""
    return {
        benchmark: {kind: asdict(score) for kind, score in kinds.items()}
        for benchmark, kinds in scores.items()
    }


def tally(answers: Iterable[tuple[str, PromptKind, bool]]) -> Scores:
    """Return the scores of (benchmark, prompt kind, right?) for every question."""
    found: dict[str, dict[PromptKind, list[bool]]] = {}
    for benchmark, kind, right in answers:
        found.setdefault(benchmark, {}).setdefault(kind, []).append(right)
    return {
        benchmark: {kind: score_of(sum(right), len(right)) for kind, right in kinds.items()}
        for benchmark, kinds in found.items()
    }
