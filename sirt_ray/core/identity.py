"""What decides each artifact: the inputs that its fingerprint covers.

A setting belongs here if changing it changes what comes out. Paths, replica counts, hardware and
how often something is checkpointed never do.
"""

from collections.abc import Mapping
from typing import Protocol

from sirt_ray.artifacts import Artifact
from sirt_ray.config import DataConfig, EvaluationConfig, JobConfig
from sirt_ray.core import answers, prompts
from sirt_ray.recipes import RefineConfig

Inputs = Mapping[str, object]

_SAMPLING = {"num_cot", "num_plain", "sampling", "max_questions", "ground_truth"}
_NOT_TRAINING = {"rounds", "pairs", "reference", "roll_back", "roll_back_stderrs"}


class Scoring(Protocol):
    """What decides scores: of a job, or of a model by itself."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def evaluation(self) -> EvaluationConfig: ...

    @property
    def seed(self) -> int: ...


def questions(job: Scoring, rows: Mapping[str, str]) -> Inputs:
    return {"data": job.data.model_dump(exclude={"root"}), "rows": rows, "seed": job.seed}


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
    return {"base": base, "demonstrations": demonstrations, "tune": job.tune, "seed": job.seed}


def samples(
    job: JobConfig, student: Artifact, questions: Artifact, demonstrations: Artifact
) -> Inputs:
    return {
        "student": student,
        "questions": questions,
        "demonstrations": demonstrations,
        "refine": job.refine.model_dump(include=_SAMPLING),
        "prompts": prompts.VERSION,
        "verifier": answers.VERSION,
        "seed": job.seed,
    }


def pairs(job: JobConfig, samples: Artifact) -> Inputs:
    return {"samples": samples, "pairs": job.refine.pairs, "seed": job.seed}


def reference(job: JobConfig, student: Artifact, pairs: Artifact) -> Inputs:
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


def refined(job: JobConfig, student: Artifact, pairs: Artifact, reference: Artifact) -> Inputs:
    return {
        "student": student,
        "pairs": pairs,
        "reference": reference,
        "refine": trained(job.refine),
        "seed": job.seed,
    }


def trained(config: RefineConfig) -> Inputs:
    """What decides a refinement, beside its pairs."""
    return config.model_dump(exclude=_SAMPLING | _NOT_TRAINING)


def evaluation(job: Scoring, model: Artifact | str, questions: Artifact) -> Inputs:
    return {
        "model": model,
        "questions": questions,
        "evaluation": job.evaluation.model_dump(exclude={"teacher"}),
        "prompts": prompts.VERSION,
        "verifier": answers.VERSION,
        "seed": job.seed,
    }
