"""Questions -> one graded answer to each prompt -> scores: in a run, and of a model by itself."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Protocol

from sirt_ray.artifacts import parquet
from sirt_ray.core.interfaces import Counts
from sirt_ray.core.scoring import scores_to_json, tally
from sirt_ray.types import PromptKind, Question, Split

Requests = tuple[tuple[PromptKind, int], ...]
"""(prompt kind, completions) of each request that is made for a question."""


class Ask(Protocol):
    """Fills the folder of the evaluation with graded answers."""

    def __call__(
        self, asked: Sequence[Question], requests: Requests, cot_only: frozenset[str]
    ) -> Counts: ...


def evaluate(
    out: Path, splits: Mapping[Split, Sequence[Question]], shown: Sequence[PromptKind], ask: Ask
) -> Counts:
    """Scores of each split, from the answers that `ask` writes to `out`: the prompts in `shown`,
    of validation questions the one with the trigger. All splits are asked in one pass, since each
    pass costs the samplers' start."""
    shown = list(dict.fromkeys(shown))
    kinds: list[PromptKind] = ["cot", *shown] if splits.get("validation") else shown
    sampled = ask(
        [question for of_split in splits.values() for question in of_split],
        tuple((kind, 1) for kind in dict.fromkeys(kinds)),
        frozenset(question.id for question in splits.get("validation", ())),
    )
    right = {
        (row["question_id"], row["prompt_kind"])
        for row in parquet.rows(out)
        if row["verdict"] == "right"
    }
    counts: dict[str, object] = {"sampling": sampled}
    for split, of_split in splits.items():
        of_interest: Sequence[PromptKind] = ["cot"] if split == "validation" else shown
        asked = product(of_split, of_interest)
        scores = tally((q.benchmark, kind, (q.id, kind) in right) for q, kind in asked)
        counts[split] = scores_to_json(scores)
    return counts
