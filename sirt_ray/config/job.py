"""The tree of a job file. A default has its home here and nowhere else.

Defaults are the paper's where the paper says (`docs/design/method.md` lists the departures and what
is not known); a field's documentation stands under it. Unknown keys are refused, cross-field nonsense is
refused, and every problem is reported at once. `sirt_ray.jobfile` reads the YAML and turns the
problems into one message with file and line.

Two kinds of settings are kept apart. What decides the result (data, models, seeds, sampling,
training) is part of an artifact's identity. Where and how fast it runs, and who watches
(`resources`, `output`, `tracking`, `data.root`, an endpoint's URL, pace and budget), never is.
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
from sirt_ray.config.training import RefineConfig, TuneConfig
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
    """Completions asked of the teacher for each question; the first that is kept is used. Of
    `teacher.demonstrations` all are tried."""


class StudentConfig(Section):
    model: Annotated[str, AfterValidator(checked_model)]
    """Path, address in object storage or hub name of the base model, `quickstart:student` for the
    one that is shipped."""
    revision: str | None = None


class EvaluationConfig(Section):
    prompts: list[PromptKind] = Field(default=["cot", "plain"], min_length=1)
    sampling: SamplingConfig = SamplingConfig()
    teacher: bool = True
    """Also score the teacher on the test questions, where there is one that can be asked."""


class ScoringConfig(Section):
    """What `sirt evaluate` asks a model, by the names of its arguments."""

    own_benchmarks: CustomBenchmarks = Field(default={})
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
    """Where and how fast; never part of the scores' identity."""

    @field_validator("benchmarks")
    @classmethod
    def _known_and_distinct(cls, benchmarks: list[str], info: ValidationInfo) -> list[str]:
        own = info.data.get("own_benchmarks", ())
        if problem := names_problem(benchmarks, own, info):
            raise ValueError(problem)
        return benchmarks

    @property
    def data(self) -> ScoredDataConfig:
        return ScoredDataConfig(
            evaluate=self.benchmarks,
            root=self.root,
            num_test=self.num,
            benchmarks=self.own_benchmarks,
        )

    @property
    def evaluation(self) -> EvaluationConfig:
        return EvaluationConfig(prompts=self.prompts, sampling=self.sampling)


class JobConfig(Section):
    """One run. `sirt run` writes it, resolved, to the run folder's `config.yaml`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run folder."""
    method: str | None = None
    """One of `methods.py`, whose settings lie under those of the job file; None: the defaults."""
    output: Annotated[str, AfterValidator(checked_output)] = "runs"
    """The run folder is `<output>/<name>`: a folder that all nodes see, or an address in object
    storage (s3://bucket/runs, gs://bucket/runs)."""
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
    """Where figures are kept for people to look at, while the run works. Those other than
    `tensorboard` are packages of their own, the extras `mlflow` and `wandb`."""

    @property
    def run_dir(self) -> Path:
        """The run folder; of one in object storage this machine's copy."""
        return object_store.to_local_path(self.output) / self.name

    @property
    def quantizes(self) -> bool:
        """Whether any training of the job is QLoRA."""
        rounds = range(1, self.refine.rounds + 1)
        refined = [self.refine.of_round(round) for round in rounds[:2]]
        tuned = [] if self.tune.skip else [self.tune]
        return any(config.quantizes for config in [*tuned, *refined])

    @property
    def code(self) -> list[str]:
        """What the job executes of files that it names, as `path.py:function`."""
        return list(dict.fromkeys([*self.data.code, *self.refine.code]))

    def with_code(self, change: Callable[[str], str]) -> "JobConfig":
        """The job with other references to its code."""
        own = {name: task.with_code(change) for name, task in self.data.benchmarks.items()}
        data = self.data.model_copy(update={"benchmarks": own})
        return self.model_copy(update={"data": data, "refine": self.refine.with_code(change)})

    @property
    def in_domain(self) -> list[str]:
        """Benchmarks that the student is trained on, in their order in `data.train`."""
        parts = [] if self.tune.skip else [self.tune.tasks]
        parts += [self.refine.of_round(round).tasks for round in (1, 2)[: self.refine.rounds]]
        asked = {name for tasks in parts for name in tasks or self.data.train}
        return [name for name in self.data.train if name in asked]

    def at_round(self, round: int) -> "JobConfig":
        """The job with the settings of one round, counted from 1, in `refine`."""
        return self.model_copy(update={"refine": self.refine.of_round(round)})

    @model_validator(mode="after")
    def _trains_on_its_questions(self) -> "JobConfig":
        problems: list[str] = []
        asked = {"tune": self.tune.tasks, "refine": self.refine.tasks}
        if self.refine.even_rounds:
            asked["refine.even_rounds"] = self.refine.of_round(2).tasks
        for name, tasks in asked.items():
            foreign = [task for task in tasks or [] if task not in self.data.train]
            if foreign:
                problems.append(
                    f"{name}.tasks names {', '.join(foreign)}, whose training questions the job"
                    " does not have. Add them to data.train, or take them away"
                )
        if self.tune.skip and self.refine.rounds == 0:
            problems.append(
                "tune.skip is set and refine.rounds is 0, so nothing would be trained. Take"
                " tune.skip away, or set refine.rounds to 1 or more"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _leaves_room_for_prompts(self) -> "JobConfig":
        served, student = self.resources.teacher, self.resources.student
        asked = [
            ("teacher", served, "teacher.sampling", self.teacher.sampling),
            ("student", student, "evaluation.sampling", self.evaluation.sampling),
        ]
        if self.refine.rounds:
            asked.append(("student", student, "refine.sampling", self.refine.sampling))
        problems = [
            f"{name}.max_tokens is {sampling.max_tokens}, and resources.{role}.max_model_len is"
            f" {engine.max_model_len}, prompt included: no question fits before an answer of that"
            " length. Lower max_tokens, or raise max_model_len"
            for role, engine, name, sampling in asked
            if engine.max_model_len is not None
            and sampling.max_tokens >= engine.max_model_len
            and (role == "student" or self.teacher.model is not None)
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _paid_answers_outlive_nodes(self) -> "JobConfig":
        endpoint = self.teacher.endpoint
        if is_uri(self.output) and endpoint is not None and endpoint.cache is None:
            raise ValueError(
                "output is in object storage, but what teacher.endpoint has answered and what was"
                " paid for it lies on a disk, where the next start of the job has to find it. Set"
                " teacher.endpoint.cache to a folder that outlives the node"
            )
        return self

    @model_validator(mode="after")
    def _quantized_is_not_cut(self) -> "JobConfig":
        if self.quantizes and self.resources.trainer.zero_stage == 3:
            raise ValueError(
                "lora.quantize is set, but resources.trainer.zero_stage is 3, which cuts parameters"
                " in pieces: a quantised one cannot be read from a piece. Set zero_stage to 2 or"
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
