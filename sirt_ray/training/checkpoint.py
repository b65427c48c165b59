"""Saving a training so that it goes on bit for bit, and keeping the best weights it has had.

A checkpoint holds the engine's state (parameters, optimizer) and how far the training is. There is
no random state to keep: batches and dropout are functions of the seed and the step.
"""

import os
import shutil
from dataclasses import asdict

from sirt_ray.training.engine import Engine
from sirt_ray.training.workfolder import State, WorkFolder, storing, write_json


def save(engine: Engine, work: WorkFolder, state: State) -> None:
    """One whole checkpoint; older ones go when it stands."""
    whole = work.checkpoint(state.step)
    partial = whole.with_suffix(".partial")
    if engine.rank == 0:
        work.check_claim()
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    engine.wait()
    with storing(partial):
        engine.save(partial)
    engine.wait()
    if engine.rank == 0:
        with storing(partial):
            write_json(partial / "state.json", asdict(state))
        shutil.rmtree(whole, ignore_errors=True)
        partial.replace(whole)
        work.prune(state)
    engine.wait()


def resume(engine: Engine, work: WorkFolder) -> State:
    """Load the newest checkpoint into the engine; a fresh state where there is none."""
    newest = work.latest()
    state = State() if newest is None else work.state(newest)
    if newest is not None:
        engine.load(newest)
    if engine.rank == 0:
        work.truncate(state.step)
    engine.wait()
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
    engine.wait()
