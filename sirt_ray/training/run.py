"""One worker's whole part in tuning, in the reference pass, in refining.

`run(task, ...)` is called by every worker with the same task; rank 0 writes. Called again on the
same folder it goes on where it was: at a checkpoint, or at the export.
"""

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from sirt_ray.artifacts import parquet
from sirt_ray.config.training import RefineConfig
from sirt_ray.core.encoding import TrainingExample
from sirt_ray.errors import ArtifactError
from sirt_ray.training import data, metrics
from sirt_ray.training import fit as choice
from sirt_ray.training.capabilities import probe
from sirt_ray.training.checkpoint import export
from sirt_ray.training.engine import DeepSpeedEngine, Engine, PlainEngine, Workers
from sirt_ray.training.fit import Fit, Objective, Settings
from sirt_ray.training.forward import CompletionLogps, ModelCapabilities
from sirt_ray.training.metrics import model_size
from sirt_ray.training.model import (
    Model,
    checkpoint_activations,
    load_model,
    load_tokenizer,
    prepare,
    weights_key,
)
from sirt_ray.training.objectives import Refinement, Tuning, UnpairedRefinement
from sirt_ray.training.scoring import reference_logps
from sirt_ray.training.tasks import ReferenceTask, RefineTask, Task, TuneTask
from sirt_ray.training.workdir import State, WorkDir, last_line

Counts = dict[str, Any]

REFERENCE_FILE = "reference.parquet"
"""One row for each pair, in the pairs' order; null where a pair is longer than `max_length`."""


def run(task: Task, device: torch.device, attempt: str | None = None) -> Counts:
    """Do the task; with DeepSpeed where a process group is initialised. Returns the counts on
    rank 0, nothing on the others. `attempt`: the driver's claim on the folder."""
    _settle(device)
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
    """What reference log-probabilities belong to: the weights as loaded, and the pairs' ids."""
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
    capabilities = _probed(model, device)
    model = prepare(model, task.source, config, task.seed)
    size = model_size(model)
    engine = _engine(model, capabilities, task, device)
    counts: Counts = {"batches": "packed" if capabilities.packed else "padded"}
    objective: Objective = Tuning()
    if isinstance(task, TuneTask):
        tokenizer = load_tokenizer(task.source)
        examples = data.tuning_data(task.demonstrations, task.config, tokenizer, task.seed)
    else:
        if reference is None:  # The engine still is the reference: nothing is loaded, no step done.
            reference = reference_logps(engine, pairs, settings)
            counts["reference"] = "computed again: it was for other weights or pairs"
        objective = _objective(task.config, is_reference)
        examples = data.refinement_data(pairs, reference, task.config, task.seed)
    fit = Fit(engine, objective, examples, settings, work, size)
    state, chosen = fit.run()
    counts |= {"chosen_step": chosen, "planned_steps": fit.total_steps}
    if choice.out_of_patience(state, config) and state.step < fit.total_steps:
        counts["stopped_early"] = choice.why_stopped(state, config)
    return {**data.describe(examples), **counts, **_counts(state, chosen, work)}


def _probed(model: Model, device: torch.device) -> ModelCapabilities:
    """Asked where it will be trained: on another device other kernels would answer."""
    return probe(model.to(device))


def _pairs(task: ReferenceTask | RefineTask) -> list[TrainingExample]:
    return data.pair_examples(task.pairs, mismatched=task.config.loss == "kto")


def _weights_of_another_reference(task: Task, device: torch.device) -> str | None:
    """The key of the reference's weights; None where its model is the one that is trained. Asked
    before that one is loaded, so that there is only one of them in memory."""
    if not isinstance(task, RefineTask) or task.reference_source in (None, task.source):
        return None
    model = load_model(task.reference_source, task.config, quantized_on=device)
    return weights_key(model)


def _stored_reference(
    task: RefineTask, key: str, is_reference: bool, num_pairs: int
) -> Sequence[data.ReferenceLogps | None] | None:
    """The stored log-probabilities, none for each pair where the loss needs none; None where the
    policy has to compute them again, which it can where it is the reference. Raises ArtifactError
    where it is not."""
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


def _objective(config: RefineConfig, is_reference: bool) -> Objective:
    """`is_reference`: whether the policy has the reference's weights before the first update."""
    if config.loss == "rft":
        return Tuning()
    if config.loss == "kto":
        return UnpairedRefinement(config, is_reference)
    return Refinement(config, is_reference)


def _engine(
    model: Model,
    capabilities: ModelCapabilities,
    task: Task,
    device: torch.device,
) -> Engine:
    """DeepSpeed where a process group is initialised. A reference's pass needs it only where the
    model does not fit a worker whole."""
    passes_only = isinstance(task, ReferenceTask)
    if task.resources.gradient_checkpointing and not passes_only:
        checkpoint_activations(model)
    module = CompletionLogps(model, capabilities)
    grouped = torch.distributed.is_initialized()
    optimize = not passes_only
    if grouped and (optimize or task.resources.zero_stage == 3):
        return DeepSpeedEngine(module, task.config, task.resources, device, optimize)
    return PlainEngine(module, task.config, device, optimize)


def _counts(state: State, chosen: int, work: WorkDir) -> Counts:
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
        "warnings": metrics.described(last.get("warnings", {})),
    }


def _reference(task: ReferenceTask, work: WorkDir, device: torch.device) -> Counts:
    settings = Settings(task.config, task.resources, seed=0)
    model = load_model(task.source, task.config, quantized_on=device)
    examples = _pairs(task)
    key = content_key(weights_key(model), examples)
    engine = _engine(model, _probed(model, device), task, device)
    if engine.rank == 0:
        work.truncate(0)
    logps = reference_logps(engine, examples, settings, work)
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


def _settle(device: torch.device) -> None:
    """What the libraries must know before they are imported, and that they need not talk."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
