"""A run's folder -> what there is to report, and what is missing.

Which artifacts a job has, and which rounds were rolled back, is asked of the loop itself: it goes
over the folder once more and builds nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sirt_ray import user_code
from sirt_ray.artifacts.store import Artifact, Build, DryRunStore, differences
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import load
from sirt_ray.config.job import JobConfig
from sirt_ray.config.study import STATES
from sirt_ray.core.interfaces import Counts, Stages
from sirt_ray.core.loop import Loop
from sirt_ray.errors import DataError
from sirt_ray.report.journal import SILENT
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
    records = _Records(run_dir)
    outcome = Loop(job, cast(Stages, _NothingToDo()), records, SILENT).run()
    scores = {
        stage: found
        for stage, found in outcome.scores.items()
        if f"{stage}/evaluation" in records.counts
    }
    return RunRecord(
        run_dir,
        job,
        records.counts,
        tuple(state.name for state in records.states if state.name not in records.counts),
        scores,
        tuple(version for version in outcome.rolled_back if version in scores),
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


class _Records(DryRunStore):
    """Keeps the counts of what is finished, whatever settings it was made with."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.counts: dict[str, Counts] = {}

    def once(self, name: str, inputs: Mapping[str, object], build: Build) -> Artifact:
        try:
            artifact = super().once(name, inputs, build)
        except (json.JSONDecodeError, KeyError) as error:
            raise DataError(
                f"the record of {self.root / name} cannot be read ({error!r}). Move the folder"
                " away and let `sirt run` build it again"
            ) from error
        if self.states[-1].state in ("finished", "untrue"):
            self.counts[name] = artifact.counts
        return artifact


class _NothingToDo:
    """The stages of a loop that only looks: of them all, it takes these alone in its hand."""

    def identity(self, model: str, revision: str | None) -> str:
        return model

    def teacher_identity(self) -> str:
        return "teacher"

    def rows_identity(self) -> Mapping[str, str]:
        return {}

    def questions(self, out: Path) -> Counts:
        raise AssertionError("a loop that only looks builds nothing")
