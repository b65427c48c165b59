"""The `data` of a job file: benchmarks to train on and to report on, and the rows of each."""

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
    """Return the names of all benchmarks that the context lists."""
    return cast("dict[str, set[str]]", info.context or {}).get("benchmarks", set())


def names_problem(names: list[str], custom: Collection[str], info: ValidationInfo) -> str | None:
    """Return what is wrong with names of benchmarks: those in the context and the job's `custom`
    ones are known."""
    registered = _registered(info)
    known = registered.union(custom) if registered else registered
    if len(set(names)) != len(names):
        return f"names a benchmark twice: {', '.join(names)}"
    unknown = [name for name in names if name not in known]
    if known and unknown:
        return (
            f"names no known benchmark: {', '.join(unknown)}. Known are {', '.join(sorted(known))}"
        )
    return None


BenchmarkName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""The name of a benchmark, of its folder, and the part before the first "/" of a question's id."""
CustomBenchmarks = dict[BenchmarkName, CustomBenchmarkConfig]


class DataConfig(Section):
    """The questions of a job."""

    train: list[str] = Field(min_length=1)
    """Benchmarks whose training questions are demonstrated and refined on: the in-domain ones."""
    evaluate: list[str] = Field(min_length=1)
    """Benchmarks to report on; those not in `train` are out-domain."""
    root: str | None = None
    """Folder of local rows (`<root>/<benchmark>/<split>.parquet|.jsonl|.csv`, or another kind of
    `storage/row_files.py`) in the columns of the hub's data sets. Without it rows come from the hub
    at a pinned revision."""
    num_train: PositiveInt | None = None
    """Training questions per benchmark, class-balanced where there are classes. None: the paper's
    protocol (4000 for the four QA tasks, all of GSM8K and MultiArith)."""
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training questions that tuning and refining learn from. A hash of the id decides
    for each question, so that a smaller share is a subset of a larger one. The teacher answers all
    of them, so that runs with several shares can use the same answers."""
    num_validation: NonNegativeInt = 200
    """Held-out questions per training benchmark, taken from its training rows and never trained
    on. They decide on roll-back."""
    num_test: PositiveInt | None = None
    """Test questions per benchmark; None: the whole split."""

    benchmarks: CustomBenchmarks = Field(default={})
    """Custom benchmarks, by the names that `train` and `evaluate` use: `config/custom.py`."""

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
    def custom_benchmarks(self) -> CustomBenchmarks:
        """The custom benchmarks that the job uses."""
        used = {*self.train, *self.evaluate}
        return {name: task for name, task in self.benchmarks.items() if name in used}

    @property
    def code(self) -> list[str]:
        """The code that the custom benchmarks execute, as `path.py:function`."""
        return [reference for task in self.custom_benchmarks.values() for reference in task.code]


class ScoredDataConfig(DataConfig):
    """Questions to score a model on, without training."""

    train: list[str] = Field(default=[], max_length=0)
    num_validation: NonNegativeInt = 0
