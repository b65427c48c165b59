"""What the loop needs of the world, and nothing about how it is done.

`core/loop.py` is written against these; `on_ray/stages.py` is the real thing, and tests use small
fakes.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sirt_ray.artifacts.store import Artifact
from sirt_ray.types import Scores

Counts = Mapping[str, Any]
"""What a stage made and, by reason, what it dropped; JSON values. It becomes the record."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A model under the name of its weights."""

    version: str
    """`teacher`, `baseline`, `round_00`, `round_01`, ..."""
    path: str
    """Folder, hub name or address in object storage of a complete Hugging Face model, or of a PEFT
    adapter that names its base. Of a teacher that is none: what stands for it,
    `TeacherConfig.source`."""
    revision: str | None = None


class Bar(Protocol):
    """The progress of one running stage."""

    def update(self, done: float, **shown: str | float) -> None:
        """`done` of the total so far; `shown` are figures to print beside the bar."""
        ...


class Progress(Protocol):
    """Where a stage tells how far it is: a bar in a terminal, a line in a log."""

    def stage(self, name: str, total: float, unit: str) -> AbstractContextManager[Bar]: ...


class Stages(Protocol):
    """The steps of the method. Each fills the folder `out` and returns what it made and dropped;
    called again on the same folder after a kill, it continues where it was."""

    def identity(self, model: str, revision: str | None) -> str:
        """The content of a model, wherever it lies."""
        ...

    def teacher_identity(self) -> str:
        """What the demonstrations come from: the content of a model or a file, or what answers
        behind an endpoint."""
        ...

    def rows_identity(self) -> Mapping[str, str]:
        """The content of the benchmark rows that the job names, wherever they lie."""
        ...

    def questions(self, out: Path) -> Counts:
        """Benchmark rows -> training, validation and test questions."""
        ...

    def demonstrate(self, out: Path, teacher: Policy, questions: Artifact) -> Counts:
        """The teacher answers the training questions with the trigger; right answers are kept."""
        ...

    def tune(self, out: Path, base: Policy, demonstrations: Artifact) -> Counts:
        """Instruction tuning: base + demonstrations -> a complete student model."""
        ...

    def sample(
        self, out: Path, student: Policy, questions: Artifact, demonstrations: Artifact, round: int
    ) -> Counts:
        """The student writes graded CoT-Answers and Answers to the training questions."""
        ...

    def pair(self, out: Path, samples: Artifact, demonstrations: Artifact, round: int) -> Counts:
        """Graded completions, and demonstrations where the job's rule uses them -> preference
        pairs."""
        ...

    def reference(self, out: Path, reference: Policy, pairs: Artifact, round: int) -> Counts:
        """Log-probabilities of every pair under the student that the round is held to."""
        ...

    def refine(
        self,
        out: Path,
        start: Policy,
        reference: Policy,
        pairs: Artifact,
        logps: Artifact | None,
        round: int,
    ) -> Counts:
        """DPO: a model to start from + pairs -> the round's candidate, a complete student model.
        `logps` are the log-probabilities of the pairs under `reference`; None where the job's loss
        needs none."""
        ...

    def evaluate(self, out: Path, policy: Policy, questions: Artifact) -> Counts:
        """Scores under `test` and `validation`: benchmark -> prompt kind -> Score as a dict."""
        ...


class Journal(Protocol):
    """Tells the user, and the run folder, what happened."""

    def event(self, kind: str, message: str, **fields: Any) -> None: ...

    def scores(self, stage: str, scores: Scores) -> None:
        """A stage's scores on the test questions."""
        ...
