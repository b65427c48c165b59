"""The tasks of a training: the records that the driver sends to every worker."""

from dataclasses import dataclass
from pathlib import Path

from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import RefineConfig, TuneConfig


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a model's weights and tokenizer."""

    name: str
    """Absolute folder, URI in object storage, or hub name."""
    revision: str | None = None
    """Revision of `name` on the hub."""
    folder: str | None = None
    """The model's folder on this node, if `name` is a URI."""

    @property
    def location(self) -> str:
        """The folder or hub name to load from on this node."""
        return self.folder or self.name


@dataclass(frozen=True, slots=True)
class TuneTask:
    """Instruction-tune `source` on stored demonstrations; `out` becomes the student's folder."""

    out: Path
    source: Source
    demonstrations: Path
    config: TuneConfig
    resources: TrainerResources
    seed: int


@dataclass(frozen=True, slots=True)
class ReferenceTask:
    """Write `out/reference.parquet`: the log-probabilities of every pair under `source`."""

    out: Path
    source: Source
    pairs: Path
    config: RefineConfig
    resources: TrainerResources


@dataclass(frozen=True, slots=True)
class RefineTask:
    """Refine `source` on pairs; `out` becomes the next student's folder."""

    out: Path
    source: Source
    pairs: Path
    reference: Path | None
    """The reference's log-probabilities; None if the loss uses no reference."""
    config: RefineConfig
    resources: TrainerResources
    seed: int
    reference_source: Source | None = None
    """The model whose log-probabilities `reference` holds; None: `source`."""


Task = TuneTask | ReferenceTask | RefineTask
