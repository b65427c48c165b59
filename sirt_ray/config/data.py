"""A job's `data`: which benchmarks are learned from and reported on, and how many of their rows."""

from collections.abc import Collection
from typing import Annotated, cast

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sirt_ray.config.base import Section
from sirt_ray.config.custom import CustomBenchmarkConfig


def _registered(info: ValidationInfo) -> set[str]:
    """The names of all benchmarks that the context lists."""
    return cast("dict[str, set[str]]", info.context or {}).get("benchmarks", set())


def names_problem(names: list[str], own: Collection[str], info: ValidationInfo) -> str | None:
    """What is wrong with names of benchmarks, which the context may list. `own`: the job's."""
    registered = _registered(info)
    known = registered.union(own) if registered else registered
    if len(set(names)) != len(names):
        return f"names a benchmark twice: {', '.join(names)}"
    unknown = [name for name in names if name not in known]
    if known and unknown:
        return (
            f"names no known benchmark: {', '.join(unknown)}. Known are {', '.join(sorted(known))}"
        )
    return None


BenchmarkName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""Names a folder, and what stands before the first "/" of a question's id."""
CustomBenchmarks = dict[BenchmarkName, CustomBenchmarkConfig]


class DataConfig(Section):
    train: list[str] = Field(min_length=1)
    """Benchmarks whose training questions are demonstrated and refined on: the in-domain ones."""
    evaluate: list[str] = Field(min_length=1)
    """Benchmarks to report on; those not in `train` are out-domain."""
    root: str | None = None
    """Folder of local rows (`<root>/<benchmark>/<split>.parquet|.jsonl|.csv`) in the columns of the
    hub's data sets. Without it rows come from the hub at a pinned revision."""
    num_train: PositiveInt | None = None
    """Training questions per benchmark, class-balanced where there are classes. None: the paper's
    protocol (4000 for the four QA tasks, all of GSM8K and MultiArith)."""
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training questions that are learned from, in tuning and in refining, each of
    them in or out by a hash of its id: the smaller share lies within the larger. The teacher
    answers all of them, so that runs of several shares have its answers in common."""
    num_validation: NonNegativeInt = 200
    """Held-out questions per training benchmark, taken from its training rows and never trained
    on. They choose checkpoints and decide on roll-back."""
    num_test: PositiveInt | None = None
    """Test questions per benchmark; None: the whole split."""

    benchmarks: CustomBenchmarks = Field(default={})
    """Tasks of one's own, by the names that `train` and `evaluate` use: `own_benchmarks.py`."""

    @model_validator(mode="after")
    def _known_and_distinct(self, info: ValidationInfo) -> "DataConfig":
        for field, names in (("train", self.train), ("evaluate", self.evaluate)):
            if problem := names_problem(names, self.benchmarks, info):
                raise ValueError(f"{field} {problem}")
        return self

    @field_validator("benchmarks")
    @classmethod
    def _new(cls, benchmarks: CustomBenchmarks, info: ValidationInfo) -> CustomBenchmarks:
        taken = sorted(_registered(info).intersection(benchmarks))
        if taken:
            raise ValueError(
                f"{', '.join(taken)}: there is a benchmark of that name. Give the task another one"
            )
        return benchmarks

    @property
    def own(self) -> CustomBenchmarks:
        """Those of `benchmarks` that are asked."""
        asked = {*self.train, *self.evaluate}
        return {name: task for name, task in self.benchmarks.items() if name in asked}

    @property
    def code(self) -> list[str]:
        """What the tasks execute, as `path.py:function`."""
        return [reference for task in self.own.values() for reference in task.code]


class ScoredDataConfig(DataConfig):
    """Questions to score a model on; nothing is learned from any."""

    train: list[str] = Field(default=[], max_length=0)
    num_validation: NonNegativeInt = 0
