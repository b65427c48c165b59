"""One worker's whole part in tuning, in the reference pass, in refining.

`run(task, ...)` is called by every worker with the same task; rank 0 writes. Called again on the
same folder it goes on where it was: at a checkpoint, or at the export.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from sirt_ray import tables
from sirt_ray.core.encoding import TrainingExample
from sirt_ray.training import data
from sirt_ray.training.dpo import Refinement
from sirt_ray.training.engine import DeepSpeedEngine, Engine, PlainEngine, Workers
from sirt_ray.training.export import export
from sirt_ray.training.fit import Fit, Objective, Settings
from sirt_ray.training.models import (
    Model,
    checkpoint_activations,
    load_model,
    load_tokenizer,
    prepare,
    weights_key,
)
from sirt_ray.training.reference import reference_logps
from sirt_ray.training.sft import Tuning
from sirt_ray.training.tasks import ReferenceTask, RefineTask, Task, TuneTask
from sirt_ray.training.workfolder import State, WorkFolder

Counts = dict[str, Any]

REFERENCE_FILE = "reference.parquet"
REFERENCE = pa.schema({"chosen_logp": pa.float64(), "rejected_logp": pa.float64()})
"""One row for each pair, in the pairs' order; null where a pair is longer than `max_length`."""


def run(task: Task, device: torch.device, attempt: str | None = None) -> Counts:
    """Do the task; with DeepSpeed where a process group is initialised. Returns the counts on
    rank 0, nothing on the others. `attempt`: the driver's claim on the folder."""
    _settle(device)
    work = WorkFolder(task.out, attempt)
    if work.finished() is None:
        counts = (
            _reference(task, work, device)
            if isinstance(task, ReferenceTask)
            else _train(task, work, device)
        )
        if Workers(device).rank == 0:
            work.finish(counts)
    finished = work.finished()
    if Workers(device).rank > 0:
        return {}
    assert finished is not None
    if not isinstance(task, ReferenceTask):
        export(task.source, task.config, work, finished["chosen_step"])
    work.close(finished)
    return finished


def content_key(model: Model, examples: Sequence[TrainingExample]) -> str:
    """What reference log-probabilities belong to: the weights as loaded, and the pairs' ids."""
    return f"{weights_key(model)}/{data.ids_key(examples)}"


def _train(task: TuneTask | RefineTask, work: WorkFolder, device: torch.device) -> Counts:
    config, settings = task.config, Settings(task.config, task.resources, task.seed)
    model = load_model(task.source, config)
    objective: Objective
    if isinstance(task, TuneTask):
        objective = Tuning()
        tokenizer = load_tokenizer(task.source)
        examples = data.tuning_data(task.demonstrations, task.config, tokenizer, task.seed)
    else:
        objective = Refinement(task.config)
        examples = data.refinement_data(
            task.pairs, task.reference, task.config, task.seed, partial(content_key, model)
        )
    model = prepare(model, task.source, config, task.seed)
    if task.resources.gradient_checkpointing:
        checkpoint_activations(model)
    engine: Engine = (
        DeepSpeedEngine(model, config, task.resources, device)
        if torch.distributed.is_initialized()
        else PlainEngine(model, config, device)
    )
    state, chosen = Fit(engine, objective, examples, settings, work).run()
    return {**data.describe(examples), "chosen_step": chosen, **_counts(state)}


def _counts(state: State) -> Counts:
    return {
        "steps": state.step,
        "final_validation_loss": state.validation_loss,
        "best_validation_loss": state.best_validation_loss,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
    }


def _reference(task: ReferenceTask, work: WorkFolder, device: torch.device) -> Counts:
    settings = Settings(task.config, task.resources, seed=0)
    model = load_model(task.source, task.config)
    examples = data.pair_examples(task.pairs)
    key = content_key(model, examples)
    engine: Engine = (
        DeepSpeedEngine(model, task.config, task.resources, device, optimize=False)
        if torch.distributed.is_initialized() and task.resources.zero_stage == 3
        else PlainEngine(model, task.config, device)
    )
    if engine.rank == 0:
        work.truncate(0)
    logps = reference_logps(engine, examples, settings, work)
    counts = {
        "pairs": len(examples),
        "left_out": {"too_long": sum(pair is None for pair in logps)},
        "tokens": sum(example.num_tokens for example in examples),
    }
    if engine.rank == 0:
        rows = [dict(zip(REFERENCE.names, pair or (None, None), strict=True)) for pair in logps]
        tables.write(work.export / REFERENCE_FILE, rows, REFERENCE, {**counts, "key": key})
    return counts


def _settle(device: torch.device) -> None:
    """What the libraries must know before they are imported, and that they need not talk."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
