"""What decides each artifact: the inputs that its fingerprint covers.

A setting belongs here if changing it changes what comes out. Paths, replica counts, hardware and
how often something is checkpointed never do.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from sirt_ray import user_code
from sirt_ray.artifacts.store import Artifact
from sirt_ray.config.data import DataConfig
from sirt_ray.config.job import EvaluationConfig, JobConfig
from sirt_ray.config.training import RefineConfig, TrainingConfig
from sirt_ray.core import prompts
from sirt_ray.verifier import answers

Inputs = Mapping[str, object]

Model = Artifact | str
"""Weights that the run has made, or the content of others."""

_SAMPLING = {"num_cot", "num_plain", "sampling", "max_questions", "ground_truth"}
_NOT_TRAINING = {
    "rounds",
    "even_rounds",
    "tasks",
    "start",
    "pairs",
    "reference",
    "roll_back",
    "roll_back_stderrs",
}


class Scoring(Protocol):
    """What decides scores: of a job, or of a model by itself."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def evaluation(self) -> EvaluationConfig: ...

    @property
    def seed(self) -> int: ...


def questions(job: Scoring, rows: Mapping[str, str]) -> Inputs:
    # What the job's own tasks are is part of `rows`.
    data = job.data.model_dump(exclude={"root", "fraction", "benchmarks"})
    return {"data": data, "rows": rows, "seed": job.seed}


def demonstrations(job: JobConfig, teacher: str, questions: Artifact) -> Inputs:
    return {
        "questions": questions,
        "teacher": teacher,
        "sampling": job.teacher.sampling,
        "demonstrations": job.demonstrations,
        "prompts": prompts.VERSION,
        "verifier": answers.VERSION,
        "seed": job.seed,
    }


def tuned(job: JobConfig, base: str, demonstrations: Artifact) -> Inputs:
    return {
        "base": base,
        "demonstrations": demonstrations,
        "tune": training_settings(job.tune, {"tasks", "skip"}),
        "seed": job.seed,
        **learned_from(job, job.tune.tasks),
    }


def learned_from(job: JobConfig, tasks: Sequence[str] | None) -> Inputs:
    """Which of the training questions are used, where not all of them are."""
    stated: dict[str, object] = {}
    if tasks is not None:
        stated["tasks"] = sorted(tasks)
    if job.data.fraction < 1:
        stated["fraction"] = job.data.fraction
    return stated


def samples(
    job: JobConfig, student: Model, questions: Artifact, demonstrations: Artifact
) -> Inputs:
    return {
        "student": student,
        "questions": questions,
        "demonstrations": demonstrations,
        "refine": job.refine.model_dump(include=_SAMPLING),
        "prompts": prompts.VERSION,
        "verifier": answers.VERSION,
        "seed": job.seed,
        **learned_from(job, job.refine.tasks),
    }


def pairs(job: JobConfig, samples: Artifact, demonstrations: Artifact) -> Inputs:
    config = job.refine.pairs
    elsewhere = {"with_demonstrations"} | ({"rule"} if config.custom_rule else set[str]())
    stated: dict[str, object] = {
        "samples": samples,
        "pairs": config.model_dump(exclude=elsewhere),
        "seed": job.seed,
    }
    if config.custom_rule is not None:
        stated["own_rule"] = user_code.identity(config.custom_rule)
    if config.uses_demonstrations:
        stated["demonstrations"] = {
            "from": demonstrations,
            "with": config.with_demonstrations,
            "at_most": job.tune.max_demonstrations,
            **learned_from(job, job.tune.tasks),
        }
    return stated


def reference(job: JobConfig, student: Model, pairs: Artifact) -> Inputs:
    return {
        "student": student,
        "pairs": pairs,
        **scored(job.refine),
    }


def scored(config: RefineConfig) -> Inputs:
    """What decides the reference's log-probabilities, beside the weights and the pairs."""
    stated: dict[str, object] = {
        "mismatched": config.loss == "kto",
        "max_length": config.max_length,
        "dtype": config.dtype,
    }
    if config.lora is not None and config.lora.quantize is not None:
        stated["quantize"] = config.lora.quantize
    return stated


def refined(job: JobConfig, start: Model, pairs: Artifact, reference: Artifact | None) -> Inputs:
    return {
        "student": start,
        "pairs": pairs,
        **({} if reference is None else {"reference": reference}),
        "refine": trained(job.refine),
        "seed": job.seed,
    }


def trained(config: RefineConfig) -> Inputs:
    """What decides a refinement, beside its pairs."""
    return training_settings(config, _SAMPLING | _NOT_TRAINING)


def training_settings(config: TrainingConfig, exclude: Collection[str] = ()) -> Inputs:
    """Return a training's settings by the names that the records of existing artifacts have.

    `select_by` is recorded as `choose`, its earlier name, so that existing runs resume.
    """
    settings = config.model_dump(exclude=set(exclude))
    return {"choose" if name == "select_by" else name: settings[name] for name in settings}


def evaluation(job: Scoring, model: Model, questions: Artifact) -> Inputs:
    return {
        "model": model,
        "questions": questions,
        "evaluation": job.evaluation.model_dump(exclude={"teacher"}),
        "prompts": prompts.VERSION,
        "verifier": answers.VERSION,
        "seed": job.seed,
    }
