"""Saving a training so that it goes on bit for bit, and keeping the best weights it has had.

A checkpoint holds the engine's state (parameters, optimizer) and how far the training is. There is
no random state to keep: batches and dropout are functions of the seed and the step.
"""

import os
import shutil
from dataclasses import asdict
from pathlib import Path

from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import write_json
from sirt_ray.training.engine import Engine
from sirt_ray.training.workdir import STATE, State, WorkFolder, storing


def save(engine: Engine, work: WorkFolder, state: State) -> None:
    """One whole checkpoint; older ones go when it stands."""
    whole = work.checkpoint(state.step)
    in_storage = object_store.stored(whole)
    partial = whole if in_storage else whole.with_suffix(".partial")
    if engine.rank == 0:
        work.check_claim()
    if _has_own_disk(engine, whole):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    engine.wait()
    with storing(partial):
        engine.save(partial)
    engine.wait()
    if _has_own_disk(engine, whole) and engine.rank > 0:
        object_store.push(whole)
        object_store.forget(work.checkpoints)
    engine.wait()
    if engine.rank == 0:
        with storing(partial):
            write_json(partial / STATE, asdict(state))
        if in_storage:
            object_store.push(work.metrics)
            object_store.publish(whole, STATE)
        else:
            shutil.rmtree(whole, ignore_errors=True)
            partial.replace(whole)
        work.prune(state)
    engine.wait()


def _has_own_disk(engine: Engine, path: Path) -> bool:
    """Whether the worker makes and uploads folders for those that see the same disk: rank 0 on a
    disk that all see, the first of each node where each has its own."""
    first_of_node = int(os.environ.get("LOCAL_RANK", engine.rank)) == 0
    return first_of_node if object_store.stored(path) else engine.rank == 0


def resume(engine: Engine, work: WorkFolder) -> State:
    """Load the newest checkpoint into the engine; a fresh state where there is none."""
    newest = work.latest()
    if newest is not None:
        object_store.fetch(newest, STATE)
    state = State() if newest is None else work.state(newest)
    if newest is not None:
        engine.load(newest)
    if engine.rank == 0:
        work.truncate(state.step)
    engine.wait()
    if engine.rank > 0 and _has_own_disk(engine, work.path):
        object_store.forget(work.checkpoints)
    return state


def save_weights(engine: Engine, work: WorkFolder, step: int) -> None:
    """The trained parameters as they are after `step`."""
    from safetensors.torch import save_file

    trained = engine.trained()
    if trained is not None:
        path = work.weights(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with storing(partial):
            save_file(trained, partial)
            with partial.open("rb") as written:
                os.fsync(written.fileno())
        partial.replace(path)
        object_store.push(path)
    engine.wait()
