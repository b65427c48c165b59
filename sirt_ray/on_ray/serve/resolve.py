"""Which model is meant: a run's last kept student, a folder, or a name."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sirt_ray import user_code
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import load
from sirt_ray.config.job import JobConfig
from sirt_ray.config.resources import EngineConfig
from sirt_ray.errors import ModelError
from sirt_ray.quickstart import assets
from sirt_ray.storage import object_store

RoundStatus = Literal["undecided", "kept", "rolled_back"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Example::

    ServedModel("mine", "runs/mine/round_02/student", EngineConfig(max_model_len=1024))
    """

    name: str
    """What clients call it."""
    path: str
    """Folder, address in storage or hub name."""
    engine: EngineConfig


def find_model(target: str, name: str | None = None, options: Sequence[str] = ()) -> ServedModel:
    """The model that `target` means: a run's folder, a model's folder, a name on the hub or one of
    the quickstart's.

    A run's student keeps the engine settings of the run's `resources.student`; `options` are
    `field=value` over them. Raises ModelError for a run without a finished student, ConfigError for
    options that do not exist.
    """
    folder, job = object_store.to_local_path(target), find_run(target)
    if job is not None:
        student = last_kept_student(folder, job.refine.rounds)
        engine = load.override(job.resources.student, options)
        return ServedModel(name or job.name, object_store.to_uri(student.resolve()), engine)
    engine = load.override(EngineConfig(), options)
    if object_store.stored(folder):
        return ServedModel(name or folder.name, object_store.to_uri(folder), engine)
    if folder.is_dir():
        return ServedModel(name or folder.resolve().name, str(folder.resolve()), engine)
    return ServedModel(name or target, str(assets.resolve(target)), engine)


def find_run(target: str) -> JobConfig | None:
    """The job of a run's folder; None for a model's folder or name."""
    folder = object_store.to_local_path(target)
    found = object_store.names(folder)
    if "config.yaml" in found and "config.json" not in found:
        object_store.pull(folder / "config.yaml")
        object_store.pull(folder / user_code.KEPT)
        return load.load(folder / "config.yaml", (), REGISTRY)
    return None


def last_kept_student(run_dir: Path, rounds: int) -> Path:
    """The folder of the student that a run of `rounds` rounds has kept last, as far as it has come.

    Left out are candidates that were rolled back or still wait for their evaluation, and rounds
    above `rounds`, which an earlier job has left in the folder. A round that the run's events
    do not mention was kept.
    """
    fates = _fates(run_dir)
    for round in range(rounds, -1, -1):
        version = f"round_{round:02d}"
        student = run_dir / version / "student"
        if "config.json" in object_store.names(student) and fates.get(version, "kept") == "kept":
            return student
    raise ModelError(
        f"the run in {object_store.to_uri(run_dir)} has no finished student yet. Let `sirt run` finish"
        " at least the instruction tuning (round_00/student), or give the folder of a model"
    )


def _fates(run_dir: Path) -> dict[str, RoundStatus]:
    """What has become of each round's candidate. Each pass of `sirt run` tells again what it finds,
    so the last word counts. Round 0 has no one to be rolled back to."""
    fates: dict[str, RoundStatus] = {}
    for event in _events(run_dir / "events.jsonl"):
        version, _, stage = str(event.get("artifact", "")).partition("/")
        match event.get("event"), stage:
            case "finished", "student":
                fates[version] = "kept" if version == "round_00" else "undecided"
            case (("finished" | "reused"), "evaluation"):
                fates[version] = "kept"
            case "rolled_back", _:
                fates[event["version"]] = "rolled_back"
            case _:
                pass
    return fates


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """The run's events; a line that a kill has cut off tells nothing."""
    content = object_store.read(path) or b""
    for line in content.decode(errors="replace").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
