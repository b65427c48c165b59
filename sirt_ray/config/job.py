"""The tree of a job file.

Defaults are the paper's if the paper gives one (`docs/design/method.md` lists the departures and
what is not known); the documentation of a field is below it. Unknown keys and contradictory
settings are refused, and every problem is reported at once. `config/load.py` reads the YAML and
turns the problems into one message with file and line.

There are two kinds of settings. What decides the result (data, models, seeds, sampling, training)
is part of an artifact's fingerprint. Where and how fast the job runs, and who watches (`resources`,
`output`, `tracking`, `data.root`, an endpoint's URL, rate and budget), never is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sirt_ray.config.base import SamplingConfig, Section
from sirt_ray.config.data import CustomBenchmarks, DataConfig, ScoredDataConfig, names_problem
from sirt_ray.config.presets import METHODS
from sirt_ray.config.resources import EngineConfig, ResourcesConfig
from sirt_ray.config.teacher import TeacherConfig
from sirt_ray.config.training import RefineConfig, TrainingConfig, TuneConfig
from sirt_ray.storage import object_store
from sirt_ray.storage.uri import checked_model, checked_output, is_uri
from sirt_ray.types import PromptKind

TrackerName = Literal["tensorboard", "mlflow", "wandb"]


class DemonstrationsConfig(Section):
    """Stage 1: the teacher answers the training questions, zero-shot with the trigger."""

    keep: Literal["right", "all"] = "right"
    """`right`: keep demonstrations whose final answer matches the gold answer. `all`: keep every
    finished one (the paper does not say that it filters)."""
    samples_per_question: PositiveInt = 1
    """Completions to sample from the teacher for each question; the first that is kept is used. Of
    `teacher.demonstrations` all are tried."""


class StudentConfig(Section):
    """The model to train."""

    model: Annotated[str, AfterValidator(checked_model)]
    """Path, URI in object storage or hub name of the base model; `quickstart:student` is the model
    that is shipped with the package."""
    revision: str | None = None
    """Revision of `model` on the hub."""


class EvaluationConfig(Section):
    """How every student, and the teacher, is scored."""

    prompts: list[PromptKind] = Field(default=["cot", "plain"], min_length=1)
    sampling: SamplingConfig = SamplingConfig()
    teacher: bool = True
    """Also score the teacher on the test questions, unless it is a file of demonstrations."""


class ScoringConfig(Section):
    """The settings of `sirt evaluate`, by the names of its arguments."""

    custom_benchmarks: CustomBenchmarks = Field(default={})
    """As `data.benchmarks` in a job file."""
    benchmarks: list[str] = Field(min_length=1)
    root: str | None = None
    """As `data.root` in a job file."""
    num: PositiveInt | None = None
    """Test questions per benchmark; None: the whole split."""
    prompts: list[PromptKind] = Field(default=EvaluationConfig().prompts, min_length=1)
    sampling: SamplingConfig = SamplingConfig()
    seed: NonNegativeInt = 0
    engine: EngineConfig = EngineConfig()
    """Where and how fast the model is sampled; never part of the scores' fingerprint."""

    @field_validator("benchmarks")
    @classmethod
    def _known_and_distinct(cls, benchmarks: list[str], info: ValidationInfo) -> list[str]:
        custom = info.data.get("custom_benchmarks", ())
        if problem := names_problem(benchmarks, custom, info):
            raise ValueError(problem)
        return benchmarks

    @property
    def data(self) -> ScoredDataConfig:
        return ScoredDataConfig(
            evaluate=self.benchmarks,
            root=self.root,
            num_test=self.num,
            benchmarks=self.custom_benchmarks,
        )

    @property
    def evaluation(self) -> EvaluationConfig:
        return EvaluationConfig(prompts=self.prompts, sampling=self.sampling)


class JobConfig(Section):
    """One run. `sirt run` writes it, resolved, to the run folder's `config.yaml`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """The name of the run folder."""
    method: str | None = None
    """A method of `config/presets.py`, whose settings are below those of the job file; None: the
    defaults."""
    output: Annotated[str, AfterValidator(checked_output)] = "runs"
    """The run folder is `<output>/<name>`: a folder that all nodes see, or a URI in object storage
    (s3://bucket/runs, gs://bucket/runs)."""
    seed: NonNegativeInt = 0
    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    demonstrations: DemonstrationsConfig = DemonstrationsConfig()
    tune: TuneConfig = TuneConfig()
    refine: RefineConfig = RefineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: list[TrackerName] = Field(default=["tensorboard"])
    """Trackers that record the metrics while the run works. `mlflow` and `wandb` need the extra of
    that name."""

    @property
    def run_dir(self) -> Path:
        """The run folder, or this machine's copy if the run is in object storage."""
        return object_store.to_local_path(self.output) / self.name

    @property
    def trainings(self) -> dict[str, TrainingConfig]:
        """The trainings of the job, by the names of their sections; `refine.even_rounds` only if it
        has settings of its own."""
        found: dict[str, TrainingConfig] = {} if self.tune.skip else {"tune": self.tune}
        if self.refine.rounds:
            found["refine"] = self.refine.of_round(1)
        if self.refine.rounds > 1 and self.refine.even_rounds:
            found["refine.even_rounds"] = self.refine.of_round(2)
        return found

    @property
    def quantizes(self) -> bool:
        """Whether any training of the job is QLoRA."""
        return any(config.quantizes for config in self.trainings.values())

    @property
    def code(self) -> list[str]:
        """The code that the job executes, as `path.py:function`."""
        return list(dict.fromkeys([*self.data.code, *self.refine.code]))

    def with_code(self, change: Callable[[str], str]) -> "JobConfig":
        """Return the job with its references to code changed by `change`."""
        custom = {name: task.with_code(change) for name, task in self.data.benchmarks.items()}
        data = self.data.model_copy(update={"benchmarks": custom})
        return self.model_copy(update={"data": data, "refine": self.refine.with_code(change)})

    @property
    def in_domain(self) -> list[str]:
        """Benchmarks that the student is trained on, in their order in `data.train`."""
        parts = [] if self.tune.skip else [self.tune.tasks]
        parts += [self.refine.of_round(number).tasks for number in (1, 2)[: self.refine.rounds]]
        used = {name for tasks in parts for name in tasks or self.data.train}
        return [name for name in self.data.train if name in used]

    @property
    def rounds(self) -> list["JobConfig"]:
        """The job with the settings of each round in `refine`, in order."""
        return [self.at_round(number) for number in range(1, self.refine.rounds + 1)]

    def at_round(self, number: int) -> "JobConfig":
        """Return the job with the settings of round `number` (1 .. rounds) in `refine`."""
        return self.model_copy(update={"refine": self.refine.of_round(number)})

    @model_validator(mode="after")
    def _trains_on_its_questions(self) -> "JobConfig":
        problems: list[str] = []
        named = {"tune": self.tune.tasks, "refine": self.refine.tasks}
        if self.refine.even_rounds:
            named["refine.even_rounds"] = self.refine.of_round(2).tasks
        for name, tasks in named.items():
            foreign = [task for task in tasks or [] if task not in self.data.train]
            if foreign:
                problems.append(
                    f"{name}.tasks names {', '.join(foreign)}, whose training questions the job"
                    " does not have. Add them to data.train, or remove them"
                )
        if self.tune.skip and self.refine.rounds == 0:
            problems.append(
                "tune.skip is set and refine.rounds is 0, so nothing would be trained. Remove"
                " tune.skip, or set refine.rounds to 1 or more"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _prompts_fit(self) -> "JobConfig":
        served, student = self.resources.teacher, self.resources.student
        sampled = [
            ("teacher", served, "teacher.sampling", self.teacher.sampling),
            ("student", student, "evaluation.sampling", self.evaluation.sampling),
        ]
        if self.refine.rounds:
            sampled.append(("student", student, "refine.sampling", self.refine.sampling))
        problems = [
            f"{name}.max_tokens is {sampling.max_tokens}, and resources.{role}.max_model_len is"
            f" {engine.max_model_len}, prompt included: no question fits before an answer of that"
            " length. Lower max_tokens, or raise max_model_len"
            for role, engine, name, sampling in sampled
            if engine.max_model_len is not None
            and sampling.max_tokens >= engine.max_model_len
            and (role == "student" or self.teacher.model is not None)
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _paid_answers_outlive_the_node(self) -> "JobConfig":
        endpoint = self.teacher.endpoint
        if is_uri(self.output) and endpoint is not None and endpoint.cache is None:
            raise ValueError(
                "output is in object storage, but what teacher.endpoint has answered and what was"
                " paid for it is on a disk, where the next start of the job has to find it. Set"
                " teacher.endpoint.cache to a folder that outlives the node"
            )
        return self

    @model_validator(mode="after")
    def _quantized_is_not_sharded(self) -> "JobConfig":
        if self.quantizes and self.resources.trainer.zero_stage == 3:
            raise ValueError(
                "lora.quantize is set, but resources.trainer.zero_stage is 3, which shards"
                " parameters: a quantised one cannot be read from a shard. Set zero_stage to 2 or"
                " below"
            )
        return self

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str | None) -> str | None:
        if method is not None and method not in METHODS:
            raise ValueError(f"is no known method. There are {', '.join(METHODS)}")
        return method

    @field_validator("name")
    @classmethod
    def _not_hidden(cls, name: str) -> str:
        if ".." in name:
            raise ValueError("must not contain '..': it names a folder")
        return name
