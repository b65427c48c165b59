"""A run's folder -> what there is to report, and what is missing.

Which artifacts a job has, and which rounds were rolled back, is decided by the loop itself: a dry
run of it reads the folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirt_ray import user_code
from sirt_ray.artifacts.store import DryRun, Store, differences
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import load
from sirt_ray.config.job import JobConfig
from sirt_ray.config.study import STATES
from sirt_ray.core.interfaces import Counts, Model, Policy
from sirt_ray.core.loop import self_refine
from sirt_ray.core.steps import builder
from sirt_ray.errors import DataError
from sirt_ray.storage import object_store
from sirt_ray.types import Scores


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as far as it has come."""

    path: Path
    job: JobConfig
    counts: Mapping[str, Counts]
    """Finished artifact, e.g. `round_01/pairs` -> its record's counts, in the order of the run."""
    missing: tuple[str, ...]
    """Artifacts of the job that are not finished, in the order of the run."""
    scores: Mapping[str, Scores]
    """Stage -> scores on the test questions."""
    rolled_back: tuple[str, ...]
    """Stages that were rolled back."""
    kept: str
    """The stage whose student is kept so far."""

    @property
    def label(self) -> str:
        return f"seed {self.job.seed}"


def read_run(run_dir: Path) -> RunRecord:
    """Read the records of a run. Raises DataError if `run_dir` is not a run's folder or a record is
    broken, ConfigError if its job cannot be read."""
    config = run_dir / "config.yaml"
    object_store.pull(config)
    object_store.pull(run_dir / user_code.KEPT)
    if not config.is_file():
        raise DataError(
            f"{object_store.to_uri(run_dir)} is not the folder of a run or of a study: it has no"
            f" config.yaml and no {STATES}. Give a folder that `sirt run` has written, such as"
            " runs/quickstart"
        )
    job = load.load(config, (), REGISTRY)
    records = DryRun(Store(run_dir), any_settings=True)
    outcome = self_refine(job, _UnknownIdentities(job), builder(records, None))
    counts = {s.name: s.record["counts"] for s in records.statuses if s.record is not None}
    return RunRecord(
        run_dir,
        job,
        counts,
        tuple(status.name for status in records.statuses if status.name not in counts),
        outcome.scores,
        outcome.rolled_back,
        outcome.student.version,
    )


def read_runs(run_dirs: Sequence[Path]) -> list[RunRecord]:
    """Read runs of one job under different seeds, in the order given. Raises DataError if they
    differ in more than that, and what `read_run` raises."""
    runs = [read_run(run_dir) for run_dir in run_dirs]
    first = runs[0]
    by_seed = {first.job.seed: first}
    for run in runs[1:]:
        changed = differences(stated(first.job), stated(run.job))
        if changed:
            fields = "\n".join(f"  {line}" for line in changed)
            raise DataError(
                f"{first.path} and {run.path} are runs of different jobs:\n{fields}\n"
                "Only runs that differ in nothing but their seed are reported together. Report"
                " each of these by itself"
            )
        if run.job.seed in by_seed:
            raise DataError(
                f"{by_seed[run.job.seed].path} and {run.path} both have seed {run.job.seed}:"
                " their difference is not a spread over seeds. Give one of them, or run the job"
                f" again with `--set seed={max(by_seed) + 1}` and another name"
            )
        by_seed[run.job.seed] = run
    return runs


def same_test_questions(runs: Sequence[RunRecord]) -> bool:
    """Return whether the test questions of all runs are the same, by their records."""

    def digests(run: RunRecord) -> list[object]:
        counts = run.counts.get("questions", {})
        return [counts.get(name, {}).get("test") for name in run.job.data.evaluate]

    return all(digests(run) == digests(runs[0]) for run in runs)


def stated(job: JobConfig) -> dict[str, Any]:
    """Return the settings that two runs of one job share."""
    apart = {
        **dict.fromkeys(("name", "output", "seed", "resources", "tracking"), True),
        "data": {"root"},
    }
    same_code = job.with_code(user_code.identity)
    stated = same_code.model_dump(mode="json", exclude={**apart, "teacher": {"endpoint"}})
    endpoint = job.teacher.endpoint
    return stated | {"endpoint": None if endpoint is None else endpoint.identity}


class _UnknownIdentities:
    """`core.interfaces.Identities` that reads neither models nor rows: a report takes artifacts as
    they are, whatever they were made of."""

    def __init__(self, job: JobConfig) -> None:
        self._job = job

    def teacher(self) -> Model:
        teacher = self._job.teacher
        return Model(Policy("teacher", teacher.source, teacher.revision), "")

    def base(self) -> Model:
        student = self._job.student
        return Model(Policy("baseline", student.model, student.revision), "")

    def rows(self) -> Mapping[str, str]:
        return {}
