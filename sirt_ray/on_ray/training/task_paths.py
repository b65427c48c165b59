"""The paths of a training task, on the driver and on its workers.

If the run is in object storage, a path of the driver is another path on each worker's node, and the
files have to be fetched there.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from sirt_ray.artifacts.store import RECORD
from sirt_ray.on_ray.engine.weights import located
from sirt_ray.storage import object_store
from sirt_ray.training.tasks import ReferenceTask, Task, TuneTask


def to_uris(task: Task) -> dict[str, str]:
    """Return field -> URI for each path of the task. A URI is valid on every node, see
    `object_store.to_uri`."""
    values = {field.name: getattr(task, field.name) for field in fields(task)}
    return {
        name: object_store.to_uri(path) for name, path in values.items() if isinstance(path, Path)
    }


def localize(task: Task, uris: Mapping[str, str]) -> Task:
    """Return the task with the paths of this node, from what `to_uris` returned on the driver."""
    return replace(task, **{name: object_store.to_local_path(uri) for name, uri in uris.items()})


def fetch_inputs(task: Task) -> Task:
    """Fetch the files that the task reads to this node, and return the task with local sources."""
    if isinstance(task, TuneTask):
        object_store.pull(task.demonstrations)
        return replace(task, source=located(task.source))
    object_store.fetch(task.pairs, RECORD)
    if isinstance(task, ReferenceTask):
        return replace(task, source=located(task.source))
    if task.reference is not None:
        object_store.fetch(task.reference, RECORD)
    reference = task.reference_source
    return replace(
        task,
        source=located(task.source),
        reference_source=None if reference is None else located(reference),
    )
