"""Every artifact of a job, each stated once: its name, its inputs, and the stage that builds it.

    Step("round_01/pairs", "pair", needs={"samples": samples}, settings={"pairs": ..., "seed": 0})

`needs` are the artifacts and models that a step is made of. The stage receives them under the same
names as keyword arguments and receives nothing else, so it cannot use what the fingerprint does not
cover. A setting belongs into `settings` if changing it changes what comes out. Paths, replica
counts, hardware and how often something is checkpointed never do.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from sirt_ray import user_code
from sirt_ray.artifacts.store import Artifact, Build
from sirt_ray.config.data import DataConfig
from sirt_ray.config.job import EvaluationConfig, JobConfig
from sirt_ray.config.training import RefineConfig, TrainingConfig
from sirt_ray.core import prompts
from sirt_ray.core.interfaces import (
    Counts,
    FilteredDemonstrations,
    Model,
    ReferenceLogps,
)
from sirt_ray.verifier import answers

Settings = Mapping[str, object]

Stage = Literal[
    "questions", "demonstrate", "tune", "sample", "pair", "reference_logps", "refine", "evaluate"
]
"""Methods of `core.interfaces.Stages`."""

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


@dataclass(frozen=True, slots=True)
class Step:
    """One artifact to build."""

    name: str
    """Path below the run folder, e.g. `round_01/pairs`."""
    stage: Stage
    """The method that builds it."""
    needs: Mapping[str, object]
    """Its dependencies: part of the fingerprint, and the keyword arguments of the stage."""
    settings: Settings
    """The other part of the fingerprint."""
    labels: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of the stage that follow from the name, such as the round's number."""

    @property
    def inputs(self) -> Settings:
        """What the fingerprint covers."""
        return {**self.needs, **self.settings}


class Store(Protocol):
    """What builds or looks up artifacts: `artifacts.store.Store` or `artifacts.store.DryRun`."""

    def once(self, name: str, inputs: Mapping[str, object], build: Build) -> Artifact: ...


def builder(store: Store, stages: object) -> Callable[[Step], Artifact]:
    """Return what turns a step into its artifact. `stages`: `core.interfaces.Stages`, or as many of
    them as the steps need; None for a store that builds nothing."""

    def build(step: Step) -> Artifact:
        def fill(out: Path) -> Counts:
            stage: Callable[..., Counts] = getattr(stages, step.stage)
            return stage(out, **step.needs, **step.labels)

        return store.once(step.name, step.inputs, fill)

    return build


class ScoringJob(Protocol):
    """What decides scores: a job, or the settings of `sirt evaluate`."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def evaluation(self) -> EvaluationConfig: ...

    @property
    def seed(self) -> int: ...


def questions(job: ScoringJob, rows: Mapping[str, str]) -> Step:
    """`rows`: the content of each benchmark's rows; user-defined tasks are part of it."""
    data = job.data.model_dump(exclude={"root", "fraction", "benchmarks"})
    return Step("questions", "questions", {}, {"data": data, "rows": rows, "seed": job.seed})


def demonstrations(job: JobConfig, teacher: Model, questions: Artifact) -> Step:
    settings = {
        "sampling": job.teacher.sampling,
        "demonstrations": job.demonstrations,
        **_versions(),
        "seed": job.seed,
    }
    needs = {"teacher": teacher, "questions": questions}
    return Step("demonstrations", "demonstrate", needs, settings)


def tuned(job: JobConfig, base: Model, demonstrations: Artifact) -> Step:
    settings = {
        "tune": training_settings(job.tune, {"tasks", "skip"}),
        "seed": job.seed,
        **_subset(job, job.tune.tasks),
    }
    needs = {"base": base, "demonstrations": demonstrations}
    return Step("round_00/student", "tune", needs, settings)


def samples(
    job: JobConfig, number: int, student: Model, questions: Artifact, demonstrations: Artifact
) -> Step:
    """`job`: with the settings of round `number`, here and in the steps below."""
    settings = {
        "refine": job.refine.model_dump(include=_SAMPLING),
        **_versions(),
        "seed": job.seed,
        **_subset(job, job.refine.tasks),
    }
    needs = {"student": student, "questions": questions, "demonstrations": demonstrations}
    return _of_round(number, "samples", "sample", needs, settings)


def pairs(job: JobConfig, number: int, samples: Artifact, demonstrations: Artifact) -> Step:
    config = job.refine.pairs
    excluded = {"with_demonstrations"} | ({"rule"} if config.custom_rule else set[str]())
    settings: dict[str, object] = {"pairs": config.model_dump(exclude=excluded), "seed": job.seed}
    if config.custom_rule is not None:
        settings["own_rule"] = user_code.identity(config.custom_rule)
    needs: dict[str, object] = {"samples": samples}
    if config.uses_demonstrations:
        limits = {
            "with": config.with_demonstrations,
            "at_most": job.tune.max_demonstrations,
            **_subset(job, job.tune.tasks),
        }
        needs["demonstrations"] = FilteredDemonstrations(demonstrations, limits)
    return _of_round(number, "pairs", "pair", needs, settings)


def reference_logps(job: JobConfig, number: int, student: Model, pairs: Artifact) -> Step:
    """`student`: the reference policy of the round."""
    needs = {"student": student, "pairs": pairs}
    return _of_round(number, "reference", "reference_logps", needs, scored(job.refine))


def refined(
    job: JobConfig, number: int, start: Model, pairs: Artifact, reference: ReferenceLogps | None
) -> Step:
    needs: dict[str, object] = {"student": start, "pairs": pairs}
    if reference is not None:
        needs["reference"] = reference
    settings = {"refine": trained(job.refine), "seed": job.seed}
    return _of_round(number, "student", "refine", needs, settings)


def evaluation(job: ScoringJob, model: Model, questions: Artifact, name: str = "") -> Step:
    """`name`: of the artifact, by default the model's own evaluation in a run."""
    settings = {
        "evaluation": job.evaluation.model_dump(exclude={"teacher"}),
        **_versions(),
        "seed": job.seed,
    }
    needs = {"model": model, "questions": questions}
    return Step(name or f"{model.version}/evaluation", "evaluate", needs, settings)


def scored(config: RefineConfig) -> Settings:
    """What decides the reference's log-probabilities, beside the weights and the pairs."""
    settings: dict[str, object] = {
        "mismatched": config.loss == "kto",
        "max_length": config.max_length,
        "dtype": config.dtype,
    }
    if config.lora is not None and config.lora.quantize is not None:
        settings["quantize"] = config.lora.quantize
    return settings


def trained(config: RefineConfig) -> Settings:
    """What decides a refinement, beside its pairs."""
    return training_settings(config, _SAMPLING | _NOT_TRAINING)


def training_settings(config: TrainingConfig, exclude: Collection[str] = ()) -> Settings:
    """Return a training's settings by the names that the records of existing artifacts have.

    `select_by` is recorded as `choose`, its earlier name, so that existing runs resume.
    """
    settings = config.model_dump(exclude=set(exclude))
    return {"choose" if name == "select_by" else name: settings[name] for name in settings}


def _of_round(
    number: int, kind: str, stage: Stage, needs: Mapping[str, object], settings: Settings
) -> Step:
    return Step(f"round_{number:02d}/{kind}", stage, needs, settings, {"round_number": number})


def _versions() -> Settings:
    return {"prompts": prompts.VERSION, "verifier": answers.VERSION}


def _subset(job: JobConfig, tasks: Sequence[str] | None) -> Settings:
    """Which of the training questions are used, where not all of them are."""
    subset: dict[str, object] = {}
    if tasks is not None:
        subset["tasks"] = sorted(tasks)
    if job.data.fraction < 1:
        subset["fraction"] = job.data.fraction
    return subset
