"""Checkpoints, the selected weights, and the export of a student.

A checkpoint holds the optimizer's state (master weights, moments: shards.py) and the progress of
the training, so that the training continues bit for bit. There is no random state to save: batches
and dropout are functions of the seed and the step. It is renamed to its name when all of it is
durable. The newest two are kept: one that cannot be read is given up for the one before it.

The export makes a folder that `transformers` and vLLM load as it is. It reads the base model again
and puts the trained parameters over it, in one plain process: full training and LoRA end in the
same way, whatever the ZeRO stage.
"""

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sirt_ray.config.training import TrainingConfig
from sirt_ray.errors import ArtifactError
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import write_json
from sirt_ray.storage.writing import replacing, sync
from sirt_ray.training.engine import Engine
from sirt_ray.training.model import add_lora, load_model, load_tokenizer
from sirt_ray.training.shards import StoredShards, write
from sirt_ray.training.tasks import Source
from sirt_ray.training.workdir import STATE, TrainingState, WorkDir, disk_full_as_error

ADAPTER = "adapter"
"""The folder next to the merged model with the PEFT adapter, which names its base."""


def save(engine: Engine, work: WorkDir, state: TrainingState) -> None:
    """Write one whole checkpoint, then delete all but the one before it."""
    whole = work.checkpoint(state.step)
    in_storage = object_store.stored(whole)
    partial = whole if in_storage else whole.with_suffix(".partial")
    if engine.rank == 0:
        work.check_owner()
    if _is_first_on_disk(engine, whole):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    engine.barrier()
    shards = engine.shards() if engine.rank == 0 or not engine.replicated else []
    with disk_full_as_error(partial):
        write(shards, partial, engine.rank, engine.world_size)
    engine.barrier()
    if _is_first_on_disk(engine, whole) and engine.rank > 0:
        object_store.push(whole)
        object_store.forget(work.checkpoints)
    engine.barrier()
    if engine.rank == 0:
        with disk_full_as_error(partial):
            write_json(partial / STATE, asdict(state))
        if work.metrics.exists():
            sync(work.metrics)
        if in_storage:
            object_store.push(work.metrics)
            object_store.publish(whole, STATE)
        else:
            sync(partial)
            shutil.rmtree(whole, ignore_errors=True)
            partial.replace(whole)
            sync(whole.parent)
        work.prune()
    engine.barrier()


def _is_first_on_disk(engine: Engine, path: Path) -> bool:
    """Return whether the worker creates and uploads folders for the workers that share its disk:
    rank 0 on a shared disk, the first worker of each node if every node has its own disk."""
    first_of_node = int(os.environ.get("LOCAL_RANK", engine.rank)) == 0
    return first_of_node if object_store.stored(path) else engine.rank == 0


def resume(engine: Engine, work: WorkDir) -> TrainingState:
    """Load the newest checkpoint that can be read; return a fresh state if there is none.

    Raises ArtifactError if the newest one is of another format.
    """
    state = TrainingState()
    for path in reversed(work.complete()):
        object_store.fetch(path, STATE)
        loaded = _load(engine, work, path)
        if loaded is not None:
            state = loaded
            break
    if engine.rank == 0:
        work.truncate(state.step)
    engine.barrier()
    if engine.rank > 0 and _is_first_on_disk(engine, work.path):
        object_store.forget(work.checkpoints)
    return state


def _load(engine: Engine, work: WorkDir, path: Path) -> TrainingState | None:
    """Load a checkpoint. Return None, and give it up, if a worker cannot read it."""
    shards, stored, problem = engine.shards(), StoredShards(path), None
    state = TrainingState()
    with stored:
        try:
            state = work.state(path)
            stored.open()
            stored.check(shards)
        except ArtifactError as error:
            problem = str(error)
        # All or none: what a worker has read into its optimizer cannot be taken back.
        (broken,) = engine.sum_over_workers([float(problem is not None)])
        if broken:
            if engine.rank == 0:
                work.give_up(path, problem or "another worker cannot read it")
            engine.barrier()
            return None
        stored.read_into(shards)
    engine.apply_shards()
    return state


def save_weights(engine: Engine, work: WorkDir, step: int) -> None:
    """Write the trained parameters as they are after `step`."""
    from safetensors.torch import save_file

    trained = engine.trained()
    if trained is not None:
        path = work.weights(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk_full_as_error(path), replacing(path) as partial:
            save_file(trained, partial)
        object_store.push(path)
    engine.barrier()


def export(source: Source, config: TrainingConfig, work: WorkDir, step: int) -> None:
    """Fill `work.export` with config, safetensors, tokenizer and the training's metrics.

    Raises ArtifactError if the trained weights are not the model's, and StageError on a full disk.
    """
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerBase

    folder = work.export
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    object_store.pull(work.weights(step))
    object_store.pull(work.metrics)
    trained = load_file(work.weights(step))
    model = load_model(source, config)
    if config.lora is not None:
        model = add_lora(model, config.lora, source, seed=0)
    unexpected = model.load_state_dict(trained, strict=False).unexpected_keys
    if unexpected:
        raise ArtifactError(
            f"The trained weights do not belong to the model {source.name!r}: it has no parameter"
            f" {unexpected[0]!r}. Was the model's folder changed during the training?"
        )
    with disk_full_as_error(folder):
        if config.lora is not None:
            model.save_pretrained(folder / ADAPTER)
            model = model.merge_and_unload()
        _make_consistent(model.generation_config)
        model.save_pretrained(folder)
        tokenizer = load_tokenizer(source)
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        tokenizer.save_pretrained(str(folder))
        shutil.copyfile(work.metrics, folder / work.metrics.name)


def _make_consistent(generation: Any) -> None:
    """Set `do_sample` if the configuration needs it: some published models have a temperature
    without it, which `transformers` loads with a warning, but refuses to save."""
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True
