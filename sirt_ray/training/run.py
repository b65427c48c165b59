"""A worker's part in a task: tuning, the reference's pass, or refining.

Every worker calls `run(task, ...)` with the same task; rank 0 writes. Called again on the same
folder it resumes at the newest checkpoint, or at the export.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import torch

from sirt_ray.artifacts import parquet
from sirt_ray.config.training import TrainingConfig
from sirt_ray.core.encoding import TrainingExample
from sirt_ray.errors import ArtifactError
from sirt_ray.training import data
from sirt_ray.training.capabilities import probe
from sirt_ray.training.checkpoint import export
from sirt_ray.training.engine import DeepSpeedEngine, Engine, PlainEngine, Workers
from sirt_ray.training.fit import Fit, Settings, out_of_patience, stop_reason
from sirt_ray.training.forward import CompletionLogps, ModelCapabilities
from sirt_ray.training.metrics import model_size, warning_records
from sirt_ray.training.model import (
    Model,
    checkpoint_activations,
    load_model,
    load_tokenizer,
    prepare,
    weights_key,
)
from sirt_ray.training.model_checks import learned_positions
from sirt_ray.training.objectives import Objective, Tuning, make_objective
from sirt_ray.training.scoring import reference_logps
from sirt_ray.training.tasks import ReferenceTask, RefineTask, Task, TuneTask
from sirt_ray.training.workdir import TrainingState, WorkDir, last_line

Counts = dict[str, Any]

REFERENCE_FILE = "reference.parquet"
"""The file with one row for each pair, in order; null for a pair longer than `max_length`."""


def run(task: Task, device: torch.device, attempt: str | None = None) -> Counts:
    """Do the task, with DeepSpeed if a process group is initialised.

    `attempt`: the attempt that the driver has started on the folder. Return the counts on rank 0,
    nothing on the other ranks.
    """
    _configure_libraries(device)
    work = WorkDir(task.out, attempt)
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


def content_key(weights: str, examples: Sequence[TrainingExample]) -> str:
    """Return the key of reference log-probabilities: the weights as loaded, and the pairs' ids."""
    return f"{weights}/{data.ids_key(examples)}"


def _train(task: TuneTask | RefineTask, work: WorkDir, device: torch.device) -> Counts:
    config, settings = task.config, Settings(task.config, task.resources, task.seed)
    of_reference = _weights_of_another_reference(task, device)
    model = load_model(task.source, config, quantized_on=device)
    pairs, reference, is_reference = [], None, True
    if isinstance(task, RefineTask):
        pairs = _pairs(task)
        of_policy = weights_key(model)
        is_reference = of_reference in (None, of_policy)
        key = content_key(of_reference or of_policy, pairs)
        reference = _stored_reference(task, key, is_reference, len(pairs))
    capabilities, limits = _probed(model, device), _limits(model)
    limits.check(pairs)
    model = prepare(model, task.source, config, task.seed)
    size = model_size(model)
    engine = _engine(model, capabilities, task, device)
    counts: Counts = _batches(capabilities)
    objective: Objective = Tuning()
    if isinstance(task, TuneTask):
        tokenizer = load_tokenizer(task.source)
        examples = data.tuning_data(task.demonstrations, task.config, tokenizer, task.seed, limits)
    else:
        if reference is None:  # The engine is the reference: nothing is loaded, no step is done.
            limit = task.resources.max_tokens_per_micro_batch
            reference = reference_logps(engine, pairs, _longest(config, limits), limit)
            counts["reference"] = "computed again: it was for other weights or pairs"
        objective = make_objective(task.config, is_reference)
        examples = data.refinement_data(pairs, reference, task.config, task.seed, limits)
    fit = Fit(engine, objective, examples, settings, work, size)
    state, chosen = fit.run()
    counts |= {"chosen_step": chosen, "planned_steps": fit.total_steps}
    if out_of_patience(state, config) and state.step < fit.total_steps:
        counts["stopped_early"] = stop_reason(state, config)
    return {**data.describe(examples), **counts, **_counts(state, chosen, work)}


def _probed(model: Model, device: torch.device) -> ModelCapabilities:
    """Probe the model on the device that trains it: another device has other kernels."""
    return probe(model.to(device))


def _limits(model: Model) -> data.Limits:
    return data.Limits(learned_positions(model), model.get_input_embeddings().weight.shape[0])


def _longest(config: TrainingConfig, limits: data.Limits) -> int:
    """Return the longest sequence, in tokens, that is put through the model."""
    return min(config.max_length, limits.positions or config.max_length)


def _batches(capabilities: ModelCapabilities) -> Counts:
    """Return how batches are computed, for the record; where rows are padded, with the distances
    from the model's own attention that decided it."""
    if capabilities.packed:
        return {"batches": "packed"}
    chosen = capabilities.attention
    return {"batches": "padded", "attention": chosen and asdict(chosen)}


def _pairs(task: ReferenceTask | RefineTask) -> list[TrainingExample]:
    return data.pair_examples(task.pairs, mismatched=task.config.loss == "kto")


def _weights_of_another_reference(task: Task, device: torch.device) -> str | None:
    """Return the key of the reference's weights; None if its model is the one that is trained.

    This comes before the trained model is loaded, so that only one of them is in memory.
    """
    if not isinstance(task, RefineTask) or task.reference_source in (None, task.source):
        return None
    model = load_model(task.reference_source, task.config, quantized_on=device)
    return weights_key(model)


def _stored_reference(
    task: RefineTask, key: str, is_reference: bool, num_pairs: int
) -> Sequence[data.ReferenceLogps | None] | None:
    """Return the stored log-probabilities, empty for each pair if the loss needs none; None if the
    policy has to compute them again.

    Raises ArtifactError if they are stale and the policy is not the reference.
    """
    if task.reference is None:
        return [()] * num_pairs
    stored = data.stored_reference(task.reference, key)
    if stored is None and not is_reference:
        assert task.reference_source is not None
        raise ArtifactError(
            f"The reference log-probabilities in {task.reference} are of other weights than those"
            f" of {task.reference_source.name}, or of other pairs than {task.pairs}. Delete the"
            f" folder {task.reference} and run again to have them computed"
        )
    return stored


def _engine(
    model: Model,
    capabilities: ModelCapabilities,
    task: Task,
    device: torch.device,
) -> Engine:
    """Return DeepSpeed's engine if a process group is initialised, else the plain one.

    The reference's pass needs DeepSpeed only if the whole model does not fit in one worker.
    """
    passes_only = isinstance(task, ReferenceTask)
    if task.resources.gradient_checkpointing and not passes_only:
        checkpoint_activations(model)
    module = CompletionLogps(model, capabilities)
    grouped = torch.distributed.is_initialized()
    optimize = not passes_only
    if grouped and (optimize or task.resources.zero_stage == 3):
        return DeepSpeedEngine(module, task.config, task.resources, device, optimize)
    return PlainEngine(module, task.config, device, optimize)


def _counts(state: TrainingState, chosen: int, work: WorkDir) -> Counts:
    last = last_line(work.metrics) or {}
    final, best = state.validation or {}, state.best or {}
    return {
        "steps": state.step,
        "validation": best if chosen == state.best_step else final,
        "final_validation_loss": final.get("loss"),
        "best_validation_loss": best.get("loss"),
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "repeated": work.repeated(),
        "peak_memory_gib": last.get("peak_memory_gib"),
        "warnings": warning_records(last.get("warnings", {})),
    }


def _reference(task: ReferenceTask, work: WorkDir, device: torch.device) -> Counts:
    model = load_model(task.source, task.config, quantized_on=device)
    examples = _pairs(task)
    key, limits = content_key(weights_key(model), examples), _limits(model)
    limits.check(examples)
    engine = _engine(model, _probed(model, device), task, device)
    if engine.rank == 0:
        work.truncate(0)
    limit = task.resources.max_tokens_per_micro_batch
    logps = reference_logps(engine, examples, _longest(task.config, limits), limit, work)
    counts = {
        "pairs": len(examples),
        "left_out": {"too_long": sum(pair is None for pair in logps)},
        "tokens": sum(example.num_tokens for example in examples),
    }
    if engine.rank == 0:
        columns = data.REFERENCE_COLUMNS[: len(examples[0].sequences)]
        missing = (None,) * len(columns)
        rows = [dict(zip(columns, pair or missing, strict=True)) for pair in logps]
        schema = pa.schema([(column, pa.float64()) for column in columns])
        parquet.write(work.export / REFERENCE_FILE, rows, schema, {**counts, "key": key})
    return counts


def _configure_libraries(device: torch.device) -> None:
    """Set what the libraries read when they are imported, and silence them."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
