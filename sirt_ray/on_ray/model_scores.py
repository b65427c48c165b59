"""The scores of one model, outside of a run: questions -> engine -> graded answers -> scores.

out/questions/    the test questions
    evaluation/   the graded answers, and the scores in its record
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sirt_ray.artifacts.store import Artifact, Store
from sirt_ray.benchmarks.registry import grade_of
from sirt_ray.config.job import ScoringConfig
from sirt_ray.config.resources import ResourcesConfig
from sirt_ray.core import fingerprints
from sirt_ray.core.interfaces import Counts, Policy, Progress
from sirt_ray.core.scoring import read_evaluation
from sirt_ray.on_ray import serve_apps
from sirt_ray.on_ray.data import read
from sirt_ray.on_ray.engine.server import ModelServer
from sirt_ray.on_ray.engine.weights import located
from sirt_ray.on_ray.sampling.evaluate import Requests, evaluate
from sirt_ray.on_ray.sampling.prompts import TokenPrompter
from sirt_ray.on_ray.sampling.run import SamplingPlan, sample
from sirt_ray.on_ray.serve.resolve import ServedModel
from sirt_ray.storage.hashing import model_key
from sirt_ray.training.tasks import Source
from sirt_ray.types import Question, Scores


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
        server = ModelServer.deploy(
            "student",
            Policy(model.name, model.path),
            config.engine,
            run=serve_apps.run_id(self.out),
            pointers=self.out / "serving",
            samples_per_question=len(config.prompts),
        )

        def ask(asked: Sequence[Question], requests: Requests, cot_only: frozenset[str]) -> Counts:
            return sample(
                asked,
                SamplingPlan(requests, config.sampling, config.seed, cot_only),
                server,
                prompter,
                out=out,
                resources=ResourcesConfig(student=config.engine),
                progress=self.progress,
                name="evaluation",
                grade=grade_of(config.data),
            )

        try:
            server.wait_until_ready()
            asked = read.read_questions(questions.fetched(), config.benchmarks, "test")
            return evaluate(out, {"test": asked}, config.prompts, ask)
        finally:
            server.stop()
