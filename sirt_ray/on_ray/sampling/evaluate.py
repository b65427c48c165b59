"""Questions -> one graded answer to each prompt -> scores: in a run, and of a model by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

from sirt_ray.artifacts import parquet
from sirt_ray.artifacts.store import Artifact, Store
from sirt_ray.benchmarks.registry import grade_of
from sirt_ray.config.job import ScoringConfig
from sirt_ray.config.resources import ResourcesConfig
from sirt_ray.core import fingerprints
from sirt_ray.core.interfaces import Counts, Policy, Progress
from sirt_ray.core.scoring import read_evaluation, scores_to_json, tally
from sirt_ray.on_ray import serve_apps
from sirt_ray.on_ray.data import read
from sirt_ray.on_ray.engine.weights import located
from sirt_ray.on_ray.sampling.prompts import TokenPrompter
from sirt_ray.on_ray.sampling.sampler import Sampler
from sirt_ray.on_ray.sampling.worker import SamplingPlan
from sirt_ray.on_ray.serve.resolve import ServedModel
from sirt_ray.storage.hashing import model_key
from sirt_ray.training.tasks import Source
from sirt_ray.types import PromptKind, Question, Scores, Split

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


# FOLDED on_ray.model_scores: The scores of one model, outside of a run: questions -> engine -> graded answers -> scores.
#
# out/questions/    the test questions
#     evaluation/   the graded answers, and the scores in its record


@dataclass(frozen=True, slots=True)
class ModelScoring:
    """`run` is the only entry."""

    model: ServedModel
    config: ScoringConfig
    out: Path
    progress: Progress

    def run(self, store: Store) -> Scores:
        """The scores, or what is left to be asked for them. Ray must be running where `store` has
        something to build."""
        config = self.config
        questions = store.once(
            "questions",
            fingerprints.questions(config, read.rows_identity(config.data)),
            lambda out: read.prepare_questions(out, config.data, config.seed, self.progress),
        )
        evaluation = store.once(
            "evaluation",
            fingerprints.evaluation(config, model_key(self.model.path, None), questions),
            lambda out: self._evaluate(out, questions),
        )
        return read_evaluation(evaluation.counts, in_domain=()).test

    def _evaluate(self, out: Path, questions: Artifact) -> Counts:
        # Brings torch with it, which looking at finished scores does not need.
        from sirt_ray.training.model import load_tokenizer

        config, model = self.config, self.model
        prompter = TokenPrompter(load_tokenizer(located(Source(model.path), weights=False)))
        sampler = Sampler.deploy(
            "student",
            Policy(model.name, model.path),
            config.engine,
            run=serve_apps.run_id(self.out),
            pointers=self.out / "serving",
            samples_per_question=len(config.prompts),
        )

        def ask(asked: Sequence[Question], requests: Requests, cot_only: frozenset[str]) -> Counts:
            return sampler.sample(
                asked,
                SamplingPlan(requests, config.sampling, config.seed, cot_only),
                prompter,
                grade_of(config.data),
                out=out,
                block_size=ResourcesConfig().block_size,
                name="evaluation",
                progress=self.progress,
            )

        try:
            sampler.server.wait_until_ready()
            asked = read.read_questions(questions.fetched(), config.benchmarks, "test")
            return evaluate(out, {"test": asked}, config.prompts, ask)
        finally:
            sampler.stop()
