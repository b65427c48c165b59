"""How the artifacts of a job stand before it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sirt_ray.artifacts.store import Artifact, Build, Json, Store, refusal


@dataclass(frozen=True, slots=True)
class State:
    """How an artifact stands before a run."""

    name: str
    state: Literal["finished", "begun", "missing", "untrue"]
    path: Path
    """Where it lies, or will; the same for what two cells of a study have in common."""
    changed: tuple[str, ...] = ()
    """Where `untrue`: the inputs that differ, as `field: old -> new`."""


class Survey(Store):
    """A store that builds nothing and notes how each artifact stands."""

    def __init__(self, root: Path, *, pool: Path | None = None) -> None:
        super().__init__(root, pool=pool)
        self.states: list[State] = []

    def once(self, name: str, inputs: Mapping[str, object], build: Build) -> Artifact:
        found = self.look(name, inputs)
        state = "finished" if found.record else "begun" if found.begun else "missing"
        self.states.append(
            State(name, "untrue" if found.changed else state, found.home, found.changed)
        )
        counts: Json = found.record["counts"] if found.record else {}
        return Artifact(name, found.home, found.fingerprint, counts)

    @property
    def finished(self) -> bool:
        return all(state.state == "finished" for state in self.states)

    def refuse_untrue(self) -> None:
        """Raise ArtifactError for the first artifact that the job would make untrue; what depends
        on it follows from it."""
        for state in self.states:
            if state.state == "untrue":
                raise refusal(self.root / state.name, state.changed)
