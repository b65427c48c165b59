"""Saving a training so that it goes on bit for bit, and keeping the best weights it has had.

A checkpoint holds the engine's state (parameters, optimizer) and how far the training is. There is
no random state to keep: batches and dropout are functions of the seed and the step.
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
from sirt_ray.training.engine import Engine
from sirt_ray.training.model import add_lora, load_model, load_tokenizer
from sirt_ray.training.tasks import Source
from sirt_ray.training.workdir import STATE, State, WorkDir, storing

# FOLDED training.export: Chosen weights -> a student's folder that `transformers` and vLLM load as it is.
#
# The base model is read again and the trained parameters are put over it, in one plain process. So
# full training and LoRA end in the same way, whatever ZeRO stage they were trained at.

ADAPTER = "adapter"
"""Folder beside the merged model with the PEFT adapter, its base named."""


def export(source: Source, config: TrainingConfig, work: WorkDir, step: int) -> None:
    """Fill `work.export` with config, safetensors, tokenizer and the training's metrics."""
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
    with storing(folder):
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
    """Some published models name a temperature without `do_sample`; `transformers` loads that
    with a warning, but refuses to save it."""
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True


def save(engine: Engine, work: WorkDir, state: State) -> None:
    """One whole checkpoint; older ones go when it stands."""
    whole = work.checkpoint(state.step)
    in_storage = object_store.stored(whole)
    partial = whole if in_storage else whole.with_suffix(".partial")
    if engine.rank == 0:
        work.check_owner()
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


def resume(engine: Engine, work: WorkDir) -> State:
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


def save_weights(engine: Engine, work: WorkDir, step: int) -> None:
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
