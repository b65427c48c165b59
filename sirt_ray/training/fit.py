"""The training loop, the same for tuning and refining.

for step in 1 .. total:
    every micro-batch of the step's batch: loss / whole batch, backward
    clip, update, write a line
    now and then: validation (keep the best weights, or stop early), checkpoint

The learning rate and the selection of weights are pure functions of the step and of the evaluations
so far, which `TrainingState` and so every checkpoint holds: a resumed training ends at the step
where an uninterrupted one does.
"""

import math
import time
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import TrainingConfig
from sirt_ray.core.encoding import TrainingExample
from sirt_ray.errors import StageError
from sirt_ray.training import checkpoint
from sirt_ray.training.batching import BatchPlan, Part, grouped, micro_batch, micro_batches
from sirt_ray.training.data import TrainingData
from sirt_ray.training.engine import Engine
from sirt_ray.training.metrics import (
    WARNING_WINDOW,
    ForwardCounts,
    Line,
    ModelSize,
    count_forward,
    device_peak,
    peak_memory_gib,
    raised_warnings,
)
from sirt_ray.training.objectives import Objective
from sirt_ray.training.scoring import score
from sirt_ray.training.workdir import TrainingState, WorkDir, read_lines

_VALIDATED = ("loss", "accuracy", "margin", "kl")
"""Metrics of an evaluation that are reported, if the objective measures them."""

_ACCURACY_DIGITS = 9
"""Digits by which accuracies are compared: an accuracy is a sum of shares, whose last bits depend
on their order."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a training."""

    config: TrainingConfig
    resources: TrainerResources
    seed: int


class Fit:
    """One training on one worker; all workers make the same calls in the same order.

    `size`: the model's; without it the use of the device (`mfu`) is not reported.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        data: TrainingData,
        settings: Settings,
        work: WorkDir,
        size: ModelSize | None = None,
    ) -> None:
        config = settings.config
        self._engine, self._objective = engine, objective
        self._data, self._settings, self._work = data, settings, work
        self._plan = BatchPlan(
            [example.question_id for example in data.train],
            config.batch_size,
            config.epochs,
            config.max_steps,
            settings.seed,
        )
        self._size = size
        self._peak = device_peak(engine.device) if config.dtype == "bfloat16" else None
        self._recent: deque[Line] = deque(maxlen=WARNING_WINDOW)

    @property
    def total_steps(self) -> int:
        """The planned optimizer steps, without early stopping."""
        return self._plan.total_steps

    def run(self) -> tuple[TrainingState, int]:
        """Train from the newest checkpoint to the last step, or until patience runs out.

        Return the last state and the selected step, whose weights are then in the work directory.
        Raises StageError if the loss, the gradient or the weights are not finite; such weights are
        not saved.
        """
        config, total = self._settings.config, self.total_steps
        state = checkpoint.resume(self._engine, self._work)
        self._recent.extend(read_lines(self._work.metrics))
        while state.step < total and not out_of_patience(state, config):
            state, line = self._step(state)
            step = state.step
            if step % config.evaluate_every_steps == 0 or step == total:
                state = self._evaluate(state)
                found = state.validation or {}
                line |= {f"validation_{name}": value for name, value in found.items()}
            if self._engine.rank == 0:
                self._write(line)
            if step % self._settings.resources.checkpoint_every_steps == 0 and step < total:
                self._check_weights(step)
                checkpoint.save(self._engine, self._work, state)
        if config.select_by != "last" and state.best_step is not None:
            return state, state.best_step
        self._check_last_update(state.step)
        self._save_weights(state.step)
        return state, state.step

    def _step(self, state: TrainingState) -> tuple[TrainingState, dict[str, Any]]:
        started = time.monotonic()
        step = state.step + 1
        rate = learning_rate(self._settings.config, step, self.total_steps)
        batch = self._plan.batch(step)
        turns = self._turns(self._data.train, batch)
        metrics = self._pass(self._data.train, batch, turns, step)
        if not math.isfinite(metrics["loss"]):
            raise StageError(
                f"The loss is {metrics['loss']} at optimizer step {step}. Lower learning_rate or"
                " max_grad_norm, or train in float32"
            )
        if step == 1:
            self._objective.check_first_step(metrics)
        metrics["grad_norm"] = self._engine.step(rate)
        if not math.isfinite(metrics["grad_norm"]):
            raise StageError(
                f"The gradient is not finite at optimizer step {step}, though the loss is"
                f" ({metrics['loss']:.4f}). Lower learning_rate, or train in float32"
            )
        seconds = time.monotonic() - started
        tokens = sum(self._data.train[index].num_tokens for index in batch)
        line = {
            "step": step,
            "total_steps": self.total_steps,
            "lr": rate,
            **metrics,
            "seconds": seconds,
            f"{self._objective.unit}_per_second": len(batch) / seconds,
            "tokens_per_second": tokens / seconds,
            **self._use(count_forward(turns, self._engine.capabilities.packed), seconds),
        }
        done = replace(
            state, step=step, tokens=state.tokens + tokens, seconds=state.seconds + seconds
        )
        return done, line

    def _use(self, done: ForwardCounts, seconds: float) -> dict[str, float]:
        """Return how well the step used its tokens and the devices."""
        found = {
            "padding_share": done.padding_share,
            "shared_share": done.shared_share,
            "peak_memory_gib": peak_memory_gib(self._engine.device),
        }
        if self._size is not None and self._peak is not None:
            possible = self._peak * self._engine.world_size * seconds
            found["mfu"] = self._size.flops(done) / possible
        return found

    def _write(self, line: dict[str, Any]) -> None:
        """Write the step's line, with the warnings raised so far."""
        before = self._recent[-1] if self._recent else None
        self._recent.append(line)
        names = self._objective.warnings(tuple(self._recent), self._data.train)
        warnings = raised_warnings(before, names, line["step"])
        if warnings:
            line["warnings"] = warnings
        self._work.append(line)

    def _evaluate(self, state: TrainingState) -> TrainingState:
        """Compute the held-out metrics, and keep the weights if they are the best so far."""
        if not self._data.held_out:
            return state
        started = time.monotonic()
        everything = range(len(self._data.held_out))
        turns = self._turns(self._data.held_out, everything)
        with torch.no_grad():
            metrics = self._pass(self._data.held_out, everything, turns, None)
        if not math.isfinite(metrics["loss"]):
            raise StageError(
                f"The validation loss is {metrics['loss']} after optimizer step {state.step}"
            )
        select_by = self._settings.config.select_by
        found = {name: metrics[name] for name in _VALIDATED if name in metrics}
        state = update_best(state, found, select_by)
        if state.best_step == state.step and select_by != "last":
            self._save_weights(state.step)
        return replace(state, seconds=state.seconds + time.monotonic() - started)

    def _save_weights(self, step: int) -> None:
        self._check_weights(step)
        checkpoint.save_weights(self._engine, self._work, step)

    def _check_weights(self, step: int) -> None:
        """Raise StageError on all workers if the weights of one of them are not finite."""
        weights = (shard.values["master"] for shard in self._engine.shards())
        is_broken = not all(bool(part.isfinite().all()) for part in weights)
        if self._engine.sum_over_workers([float(is_broken)]) != [0.0]:
            raise StageError(
                f"The weights are not finite after optimizer step {step}, so they are not saved."
                " Lower learning_rate or weight_decay, or train in float32"
            )

    def _check_last_update(self, step: int) -> None:
        """Raise StageError if the loss is not finite after the last step. The step after it, or an
        evaluation, shows it for all others."""
        if step == 0 or self._data.held_out:
            return
        batch = self._plan.batch(step)[: self._engine.world_size]
        turns = self._turns(self._data.train, batch)
        with torch.no_grad():
            loss = self._pass(self._data.train, batch, turns, None)["loss"]
        if not math.isfinite(loss):
            raise StageError(
                f"The loss is {loss} after optimizer step {step}, the last one, so its weights are"
                " not saved. Lower learning_rate or weight_decay, or train in float32"
            )

    def _turns(self, examples: Sequence[TrainingExample], batch: Sequence[int]) -> list[list[Part]]:
        """Return the batch as micro-batches, [turn][rank]."""
        limit = self._settings.resources.max_tokens_per_micro_batch
        packed = self._engine.capabilities.packed
        return micro_batches(
            grouped(examples, batch, limit), packed, limit, self._engine.world_size
        )

    def _pass(
        self,
        examples: Sequence[TrainingExample],
        batch: Sequence[int],
        turns: Sequence[Sequence[Part]],
        step: int | None,
    ) -> dict[str, float]:
        """Run forward, and backward if `step` is given, over a batch. Return its metrics.

        Metrics add up on the device: a step only waits for them to be read at the end, and for the
        gradient's norm after that.
        """
        engine, names = self._engine, self._objective.metrics
        whole = [examples[index] for index in batch]
        limit = self._settings.resources.max_tokens_per_micro_batch
        self._objective.prepare(whole, lambda examples: score(engine, examples, limit))
        denominator = self._objective.denominator(whole)
        engine.train(step is not None)
        sums = torch.zeros(len(names), dtype=torch.float64, device=engine.device)
        for number, turn in enumerate(turns):
            if step is not None:
                self._seed_dropout(f"{step}/{number}")
            part = micro_batch(turn[engine.rank], engine.capabilities.packed, engine.device)
            logps = engine.forward(part)
            if part.numbers:
                mine = [examples[index] for index in part.numbers]
                loss, metrics = self._objective.loss(part.per_sequence(logps), mine, denominator)
                sums += torch.stack([metrics[name] for name in names])
            else:
                loss = logps.sum() * 0.0
            if step is not None:
                engine.backward(loss, last=number == len(turns) - 1)
        return dict(zip(names, engine.sum_over_workers(sums.tolist()), strict=True))

    def _seed_dropout(self, position: str) -> None:
        """Make dropout (LoRA's, in tuning) a function of the seed and the position in the
        training."""
        name = f"{self._settings.seed}/{position}/{self._engine.rank}"
        torch.manual_seed(zlib.crc32(name.encode()))


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Return the optimizer steps with a rising rate: the larger of the count and the ratio's
    share."""
    return max(config.warmup_steps, math.ceil(config.warmup_ratio * total_steps))


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (1 .. total_steps).

    It rises linearly to `config.learning_rate`, reached at the last warm-up step, then falls to
    just above 0 at the last step (`cosine`, `linear`) or stays (`constant`).
    """
    peak = config.learning_rate
    warmup = warmup_steps(config, total_steps)
    if step <= warmup:
        return peak * step / warmup
    if config.schedule == "constant":
        return peak
    left = (total_steps + 1 - step) / (total_steps + 1 - warmup)
    if config.schedule == "linear":
        return peak * left
    return peak * 0.5 * (1 - math.cos(math.pi * left))


def update_best(state: TrainingState, found: Mapping[str, float], select_by: str) -> TrainingState:
    """Return `state` with the evaluation `found` after `state.step`; it is the best so far if
    `best_step` is that step."""
    state = replace(state, validation=dict(found))
    if state.best is None or better(found, state.best, select_by):
        return replace(state, best=dict(found), best_step=state.step, stale=0)
    return replace(state, stale=state.stale + 1)


def better(one: Mapping[str, float], other: Mapping[str, float], select_by: str) -> bool:
    """Return whether `one` is better than `other`: by accuracy first if `select_by` is `accuracy`,
    then by the loss."""
    if select_by == "accuracy":
        ahead = round(one["accuracy"], _ACCURACY_DIGITS) - round(
            other["accuracy"], _ACCURACY_DIGITS
        )
        if ahead:
            return ahead > 0
    return one["loss"] < other["loss"]


def out_of_patience(state: TrainingState, config: TrainingConfig) -> bool:
    """Return whether the training stops early."""
    return config.patience is not None and state.stale >= config.patience


def stop_reason(state: TrainingState, config: TrainingConfig) -> str:
    """Return why a training that ran out of patience stopped, for its record."""
    what = "higher accuracy" if config.select_by == "accuracy" else "lower loss"
    return (
        f"no {what} on held-out questions in {state.stale} evaluations after step {state.best_step}"
    )
