"""What the loop needs of the world, and nothing about how it is done.

`core/loop.py` and `core/steps.py` are written against these protocols; `on_ray/stages.py`
implements them on Ray, and tests use small fakes.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sirt_ray.artifacts.store import Artifact
from sirt_ray.core.scoring import Evaluation
from sirt_ray.types import Scores

Counts = Mapping[str, Any]
"""What a stage made and, by reason, what it dropped; JSON values. It becomes the record."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Weights under a name, as engines and trainers load them."""

    version: str
    """`teacher`, `baseline`, `round_00`, `round_01`, ..."""
    path: str
    """Folder, hub name or address in object storage of a complete Hugging Face model, or of a PEFT
    adapter that names its base. For a teacher without weights: `TeacherConfig.source`."""
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A policy together with what its weights are, which is what fingerprints cover."""

    policy: Policy
    content: Artifact | str
    """The artifact that the run has made, or a hash of other weights."""

    @property
    def version(self) -> str:
        return self.policy.version


@dataclass(frozen=True, slots=True)
class ReferenceLogps:
    """Log-probabilities of a round's pairs, and the model that they were computed with."""

    model: Model
    logps: Artifact

    @property
    def content(self) -> Artifact:
        return self.logps


@dataclass(frozen=True, slots=True)
class FilteredDemonstrations:
    """The demonstrations that a pair rule uses, and how they are chosen."""

    artifact: Artifact
    limits: Mapping[str, object]

    @property
    def content(self) -> Mapping[str, object]:
        return {"from": self.artifact, **self.limits}


class Bar(Protocol):
    """The progress of one running stage."""

    def update(self, done: float, **shown: str | float) -> None:
        """`done` of the total so far; `shown` are figures to print beside the bar."""
        ...


class Progress(Protocol):
    """Where a stage reports its progress: a bar in a terminal, a line in a log."""

    def stage(self, name: str, total: float, unit: str) -> AbstractContextManager[Bar]: ...


class Identities(Protocol):
    """What a job starts from: hashes of models and rows, wherever they are."""

    def teacher(self) -> Model:
        """The source of the demonstrations: a model, a file, or the model behind an endpoint."""
        ...

    def base(self) -> Model:
        """The student before any training."""
        ...

    def rows(self) -> Mapping[str, str]:
        """Content hashes of the benchmark rows that the job names."""
        ...


class Stages(Protocol):
    """The stages of the method. Each fills the folder `out` and returns what it made and dropped;
    called again on the same folder after a kill, it continues. Keyword arguments are what
    `core/steps.py` states as the needs of the stage's step."""

    def questions(self, out: Path) -> Counts:
        """Benchmark rows -> training, validation and test questions."""
        ...

    def demonstrate(self, out: Path, *, teacher: Model, questions: Artifact) -> Counts:
        """The teacher answers the training questions with the trigger; right answers are kept."""
        ...

    def tune(self, out: Path, *, base: Model, demonstrations: Artifact) -> Counts:
        """Instruction tuning: base + demonstrations -> a complete student model."""
        ...

    def sample(
        self,
        out: Path,
        *,
        student: Model,
        questions: Artifact,
        demonstrations: Artifact,
        round_number: int,
    ) -> Counts:
        """The student writes graded CoT-Answers and Answers to the training questions."""
        ...

    def pair(
        self,
        out: Path,
        *,
        samples: Artifact,
        round_number: int,
        demonstrations: FilteredDemonstrations | None = None,
    ) -> Counts:
        """Graded completions, and demonstrations if the job's rule uses them -> preference
        pairs."""
        ...

    def reference_logps(
        self, out: Path, *, student: Model, pairs: Artifact, round_number: int
    ) -> Counts:
        """Log-probabilities of every pair under `student`, the reference policy of the round."""
        ...

    def refine(
        self,
        out: Path,
        *,
        student: Model,
        pairs: Artifact,
        round_number: int,
        reference: ReferenceLogps | None = None,
    ) -> Counts:
        """DPO: the weights to start from + pairs -> the round's candidate, a complete student
        model. `reference`: None if the job's loss needs none."""
        ...

    def evaluate(self, out: Path, *, model: Model, questions: Artifact) -> Counts:
        """Scores under `test` and `validation`: benchmark -> prompt kind -> Score as a dict."""
        ...


class Observer:
    """Callbacks of the loop, which by default do nothing."""

    def evaluated(self, version: str, scores: Scores) -> None:
        """A model's scores on the test questions are known."""

    def trained(self, weights: Artifact) -> None:
        """A training is finished; its counts hold the warnings that it raised."""

    def rolled_back(
        self, candidate: str, kept: str, before: Evaluation | None, after: Evaluation | None
    ) -> None:
        """A round's candidate is not kept: its held-out accuracy fell beyond its noise."""
