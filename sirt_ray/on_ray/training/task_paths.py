"""A training's files where its workers are.

What the driver names by paths of its own lies elsewhere on another node, if the run is in object
storage, and has to be fetched there.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from sirt_ray.artifacts.store import RECORD
from sirt_ray.on_ray.engine.weights import located
from sirt_ray.storage import object_store
from sirt_ray.training.tasks import ReferenceTask, Task, TuneTask


def to_uris(task: Task) -> dict[str, str]:
    """Field of the task -> its path as every node knows it: see `storage.place`."""
    values = {field.name: getattr(task, field.name) for field in fields(task)}
    return {
        name: object_store.to_uri(path) for name, path in values.items() if isinstance(path, Path)
    }


def localize(task: Task, uris: Mapping[str, str]) -> Task:
    """The task with the paths of this node."""
    return replace(task, **{name: object_store.to_local_path(uri) for name, uri in uris.items()})


def fetch_inputs(task: Task) -> Task:
    """The task, once all that it reads is on this node."""
    if isinstance(task, TuneTask):
        object_store.pull(task.demonstrations)
        return replace(task, source=located(task.source))
    object_store.fetch(task.pairs, RECORD)
    if isinstance(task, ReferenceTask):
        return replace(task, source=located(task.source))
    if task.reference is not None:
        object_store.fetch(task.reference, RECORD)
    of_reference = task.reference_source
    return replace(
        task,
        source=located(task.source),
        reference_source=None if of_reference is None else located(of_reference),
    )
