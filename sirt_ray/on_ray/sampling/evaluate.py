"""Evaluations: questions -> one graded completion of each prompt -> scores, of a run's policies and
of a model outside of any run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

from sirt_ray.artifacts import parquet
from sirt_ray.artifacts.store import Artifact
from sirt_ray.benchmarks.registry import grade_of
from sirt_ray.config.job import SamplingConfig, ScoringConfig
from sirt_ray.config.resources import ResourcesConfig
from sirt_ray.core import steps
from sirt_ray.core.interfaces import Counts, Model, Policy, Progress
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


class SampleInto(Protocol):
    """Fills the folder of the evaluation with graded completions."""

    def __call__(self, questions: Sequence[Question], plan: SamplingPlan) -> Counts: ...


def evaluate(
    out: Path,
    splits: Mapping[Split, Sequence[Question]],
    prompts: Sequence[PromptKind],
    sampling: SamplingConfig,
    seed: int,
    sample: SampleInto,
) -> Counts:
    """Return the scores of each split, from the completions that `sample` writes to `out`: for the
    prompts in `prompts`, of validation questions for the one with the trigger.

    All splits are sampled in one pass, because each pass has its own start and end.
    """
    prompts = list(dict.fromkeys(prompts))
    validation = splits.get("validation", ())
    kinds: list[PromptKind] = ["cot", *prompts] if validation else prompts
    sampled = sample(
        [question for of_split in splits.values() for question in of_split],
        SamplingPlan(
            dict.fromkeys(kinds, 1),
            sampling,
            seed,
            frozenset(question.id for question in validation),
        ),
    )
    right = {
        (row["question_id"], row["prompt_kind"])
        for row in parquet.rows(out)
        if row["verdict"] == "right"
    }
    counts: dict[str, object] = {"sampling": sampled}
    for split, of_split in splits.items():
        of_interest: Sequence[PromptKind] = ["cot"] if split == "validation" else prompts
        scores = tally(
            (question.benchmark, kind, (question.id, kind) in right)
            for question, kind in product(of_split, of_interest)
        )
        counts[split] = scores_to_json(scores)
    return counts


@dataclass(frozen=True, slots=True)
class ModelScoring:
    """The scoring of one model, outside of a run. `run` is the only entry.

    out/questions/    the test questions
        evaluation/   the graded completions, and the scores in its record
    """

    model: ServedModel
    config: ScoringConfig
    out: Path
    progress: Progress

    def run(self, store: steps.Store) -> Scores | None:
        """Return the scores; None in a dry run that finds them missing. Ray must be running if
        `store` has something to build."""
        config = self.config
        build = steps.builder(store, self)
        policy = Policy(self.model.name, self.model.path)
        model = Model(policy, model_key(self.model.path, None))
        questions = build(steps.questions(config, read.rows_identity(config.data)))
        evaluation = build(steps.evaluation(config, model, questions, name="evaluation"))
        if evaluation.counts is None:
            return None
        return read_evaluation(evaluation.counts, in_domain=()).test

    def questions(self, out: Path) -> Counts:
        return read.prepare_questions(out, self.config.data, self.config.seed, self.progress)

    def evaluate(self, out: Path, *, model: Model, questions: Artifact) -> Counts:
        # Imports torch, which reading finished scores does not need.
        from sirt_ray.training.model import load_tokenizer

        config = self.config
        source = Source(model.policy.path)
        prompter = TokenPrompter(load_tokenizer(located(source, weights=False)))
        sampler = Sampler.deploy(
            "student",
            model.policy,
            config.engine,
            run=serve_apps.run_id(self.out),
            pointers=self.out / "serving",
            samples_per_question=len(config.prompts),
        )

        def sample(questions: Sequence[Question], plan: SamplingPlan) -> Counts:
            return sampler.sample(
                questions,
                plan,
                prompter,
                grade_of(config.data),
                out=out,
                block_size=ResourcesConfig().block_size,
                name="evaluation",
                progress=self.progress,
            )

        try:
            sampler.server.wait_until_ready()
            test = read.read_questions(questions.fetched(), config.benchmarks, "test")
            return evaluate(
                out, {"test": test}, config.prompts, config.sampling, config.seed, sample
            )
        finally:
            sampler.stop()
