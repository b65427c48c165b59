"""Small stand-ins for the boundary that `core/loop.py` is written against: Ray and its engines.

`FakeStages` is the outside world of the loop: it writes real files into the folders it is given, so
that the store, the fingerprints and resuming are the real ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sirt_ray.artifacts.store import Artifact, DryRun, Store
from sirt_ray.config.job import JobConfig
from sirt_ray.core.interfaces import (
    Counts,
    FilteredDemonstrations,
    Model,
    Policy,
    ReferenceLogps,
)
from sirt_ray.core.loop import Outcome, self_refine
from sirt_ray.core.scoring import score_of, scores_to_json
from sirt_ray.core.steps import builder
from sirt_ray.driver.run import Journal, run_loop
from sirt_ray.types import Completion, Graded, PromptKind, Scores, StopReason, Verdict


def job(**changes: Any) -> JobConfig:
    """A small job; `changes` replace whole sections."""
    document: dict[str, Any] = {
        "name": "tiny",
        "data": {"train": ["gsm8k"], "evaluate": ["gsm8k"]},
        "teacher": {"model": "teacher"},
        "student": {"model": "student"},
        "refine": {"rounds": 2},
    }
    return JobConfig.model_validate(document | changes)


def graded(
    question: str = "q1",
    index: int = 0,
    *,
    kind: PromptKind = "cot",
    verdict: Verdict = "right",
    ids: tuple[int, ...] = (7, 2),
    stop: StopReason = "stop",
    text: str = " so the answer is 4.",
) -> Graded:
    completion = Completion(
        question_id=question,
        benchmark=question.split("/")[0],
        prompt_kind=kind,
        sample_index=index,
        prompt=f"{question} {kind}",
        text=text,
        prompt_ids=(1, 5) if kind == "cot" else (1, 6),
        completion_ids=ids,
        stop_reason=stop,
        model_version="round_00",
        seed=index,
    )
    extracted = None if verdict == "unparseable" else "4"
    return Graded(completion, verdict, extracted, reference="4")


class Killed(BaseException):
    """What a `kill -9` looks like from inside: nothing catches it."""


class FakeStages:
    """Writes one file per stage. `kill_in`: dies in the middle of that stage, once.
    `held_out`: right answers among 100 validation questions, by version."""

    def __init__(self, held_out: Mapping[str, int] | None = None, kill_in: str = "") -> None:
        self.calls: list[str] = []
        self.held_out = dict(held_out or {})
        self.kill_in = kill_in

    def _make(self, out: Path, name: str) -> Counts:
        self.calls.append(name)
        (out / "first").write_text(name)
        if name == self.kill_in:
            self.kill_in = ""
            raise Killed
        (out / "second").write_text(name)
        return {"made": 1}

    def questions(self, out: Path) -> Counts:
        return self._make(out, "questions")

    def demonstrate(self, out: Path, *, teacher: Model, questions: Artifact) -> Counts:
        return self._make(out, "demonstrate")

    def tune(self, out: Path, *, base: Model, demonstrations: Artifact) -> Counts:
        return self._make(out, "tune")

    def sample(
        self,
        out: Path,
        *,
        student: Model,
        questions: Artifact,
        demonstrations: Artifact,
        round_number: int,
    ) -> Counts:
        return self._make(out, f"sample {round_number} from {student.version}")

    def pair(
        self,
        out: Path,
        *,
        samples: Artifact,
        round_number: int,
        demonstrations: FilteredDemonstrations | None = None,
    ) -> Counts:
        return self._make(out, f"pair {round_number}")

    def reference_logps(
        self, out: Path, *, student: Model, pairs: Artifact, round_number: int
    ) -> Counts:
        return self._make(out, f"reference of {student.version}")

    def refine(
        self,
        out: Path,
        *,
        student: Model,
        pairs: Artifact,
        round_number: int,
        reference: ReferenceLogps | None = None,
    ) -> Counts:
        if reference is None:
            return self._make(out, f"imitate {round_number} from {student.version}")
        held_to = "" if reference.model == student else f" held to {reference.model.version}"
        return self._make(out, f"refine {round_number} from {student.version}{held_to}")

    def evaluate(self, out: Path, *, model: Model, questions: Artifact) -> Counts:
        self._make(out, f"evaluate {model.version}")
        right = self.held_out.get(model.version, 50)
        scores = scores_to_json({"gsm8k": {"cot": score_of(right, 100)}})
        return {"test": scores, "validation": scores}


class FakeIdentities:
    """Hashes of models and rows that are not there."""

    def __init__(self, job: JobConfig) -> None:
        self._job = job

    def teacher(self) -> Model:
        return Model(Policy("teacher", self._job.teacher.source), "content of teacher")

    def base(self) -> Model:
        model = self._job.student.model
        return Model(Policy("baseline", model), f"content of {model}")

    def rows(self) -> Mapping[str, str]:
        return {"gsm8k/train": "rows"}


def run_fake(
    job: JobConfig, stages: FakeStages, store: Store, journal: Journal | None = None
) -> Outcome:
    """Run the loop on fake stages and a real store, as the driver does."""
    return run_loop(job, FakeIdentities(job), stages, store, journal or Heard())


class Heard:
    """A journal that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.stages: list[str] = []

    def event(self, kind: str, message: str, **fields: Any) -> None:
        self.events.append((kind, message))

    def scores(self, stage: str, scores: Scores) -> None:
        self.stages.append(stage)


def dry_run(job: JobConfig, store: Store) -> DryRun:
    """The status of the job's artifacts in the store, as `sirt plan` takes it."""
    planned = DryRun(store)
    self_refine(job, FakeIdentities(job), builder(planned, None))
    return planned
