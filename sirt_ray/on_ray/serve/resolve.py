"""From what a user names to a model: a run's last kept student, a model's folder, a hub name."""

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
    """The name that clients call the model by."""
    path: str
    """Local folder, URI in object storage or hub name."""
    engine: EngineConfig


def find_model(target: str, name: str | None = None, options: Sequence[str] = ()) -> ServedModel:
    """Return the model that `target` names: a run's folder, a model's folder, a name on the hub or
    a model of the quickstart.

    For a run, the engine settings are the run's `resources.student`; `options` are `field=value`
    and override them. Raises ModelError for a run without a finished student, ConfigError for
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
    """Return the job of a run's folder; None for a model's folder or name."""
    folder = object_store.to_local_path(target)
    found = object_store.names(folder)
    if "config.yaml" in found and "config.json" not in found:
        object_store.pull(folder / "config.yaml")
        object_store.pull(folder / user_code.KEPT)
        return load.load(folder / "config.yaml", (), REGISTRY)
    return None


def last_kept_student(run_dir: Path, rounds: int) -> Path:
    """Return the folder of the newest student that a run of `rounds` rounds has kept so far.

    Candidates that were rolled back or wait for their evaluation are skipped, and so are rounds
    above `rounds`, which an earlier job has left in the folder. A round that the run's events do
    not mention counts as kept.
    """
    statuses = _round_statuses(run_dir)
    for number in range(rounds, -1, -1):
        version = f"round_{number:02d}"
        student = run_dir / version / "student"
        if "config.json" in object_store.names(student) and statuses.get(version, "kept") == "kept":
            return student
    raise ModelError(
        f"the run in {object_store.to_uri(run_dir)} has no finished student yet. Let `sirt run`"
        " finish at least the instruction tuning (round_00/student), or give the folder of a model"
    )


def _round_statuses(run_dir: Path) -> dict[str, RoundStatus]:
    """Return the status of each round's candidate, by version. Every start of `sirt run` logs its
    artifacts again, so the last event counts. Round 0 is never rolled back."""
    statuses: dict[str, RoundStatus] = {}
    for event in _events(run_dir / "events.jsonl"):
        version, _, stage = str(event.get("artifact", "")).partition("/")
        match event.get("event"), stage:
            case "finished", "student":
                statuses[version] = "kept" if version == "round_00" else "undecided"
            case (("finished" | "reused"), "evaluation"):
                statuses[version] = "kept"
            case "rolled_back", _:
                statuses[event["version"]] = "rolled_back"
            case _:
                pass
    return statuses


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the run's events. A line that was cut off when the driver was killed is skipped."""
    content = object_store.read(path) or b""
    for line in content.decode(errors="replace").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
