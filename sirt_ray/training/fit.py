"""The training loop, for tuning and refining alike.

for step in 1 .. total:
    every micro-batch of the step's batch: loss / whole batch, backward
    clip, update, write a line
    now and then: validation loss (keep the best weights), checkpoint
"""

import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sirt_ray.config import TrainingConfig
from sirt_ray.core.encoding import TrainingExample
from sirt_ray.core.losses import Metrics
from sirt_ray.errors import StageError
from sirt_ray.resources import TrainerResources
from sirt_ray.training import checkpoint
from sirt_ray.training.batching import BatchPlan, micro_batches
from sirt_ray.training.data import TrainingData, shapes
from sirt_ray.training.engine import Engine
from sirt_ray.training.forward import EMPTY, Model, completion_logps
from sirt_ray.training.schedule import learning_rate
from sirt_ray.training.workfolder import State, WorkFolder


class Objective(Protocol):
    """What is minimised. Losses and metrics of parts add up to the batch's: see core/losses.py."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what `loss` measures; `loss` is among them."""
        ...

    def denominator(self, batch: Sequence[TrainingExample]) -> float: ...

    def loss(
        self,
        model: Model,
        examples: Sequence[TrainingExample],
        denominator: float,
        device: torch.device,
    ) -> tuple[Tensor, Metrics]: ...

    def check_first_step(self, metrics: Mapping[str, float]) -> None: ...


@dataclass(frozen=True, slots=True)
class Settings:
    config: TrainingConfig
    resources: TrainerResources
    seed: int


class Fit:
    """One training on one worker; all workers run the same calls in the same order."""

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        data: TrainingData,
        settings: Settings,
        work: WorkFolder,
    ) -> None:
        config = settings.config
        self._engine, self._objective = engine, objective
        self._data, self._settings, self._work = data, settings, work
        self._plan = BatchPlan(
            len(data.train), config.batch_size, config.epochs, config.max_steps, settings.seed
        )
        self._shapes = shapes(data.train)

    def run(self) -> tuple[State, int]:
        """Train from the newest checkpoint to the last step.

        Returns the last state and the chosen step, whose weights are then in the work folder.
        Raises StageError on a loss that is not finite.
        """
        config = self._settings.config
        total = self._plan.total_steps
        state = checkpoint.resume(self._engine, self._work)
        for step in range(state.step + 1, total + 1):
            state, line = self._step(state, step)
            if step % config.evaluate_every_steps == 0 or step == total:
                state = self._evaluate(state)
                if state.validation_loss is not None:
                    line["validation_loss"] = state.validation_loss
            if self._engine.rank == 0:
                self._work.append(line)
            if step % self._settings.resources.checkpoint_every_steps == 0 and step < total:
                checkpoint.save(self._engine, self._work, state)
        if config.choose == "best" and state.best_step is not None:
            return state, state.best_step
        checkpoint.save_weights(self._engine, self._work, state.step)
        return state, state.step

    def _step(self, state: State, step: int) -> tuple[State, dict[str, Any]]:
        began = time.monotonic()
        rate = learning_rate(self._settings.config, step, self._plan.total_steps)
        batch = self._plan.batch(step)
        self._engine.train(True)
        metrics = self._pass(self._data.train, batch, step)
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
        seconds = time.monotonic() - began
        tokens = sum(self._data.train[index].num_tokens for index in batch)
        line = {
            "step": step,
            "total_steps": self._plan.total_steps,
            "lr": rate,
            "tokens_per_second": tokens / seconds,
            **metrics,
        }
        done = replace(
            state, step=step, tokens=state.tokens + tokens, seconds=state.seconds + seconds
        )
        return done, line

    def _evaluate(self, state: State) -> State:
        """Validation loss; the weights are kept where it is the lowest so far."""
        if not self._data.held_out:
            return state
        began = time.monotonic()
        self._engine.train(False)
        with torch.no_grad():
            everything = range(len(self._data.held_out))
            loss = self._pass(self._data.held_out, everything, None)["loss"]
        if not math.isfinite(loss):
            raise StageError(f"The validation loss is {loss} after optimizer step {state.step}")
        best = state.best_validation_loss is None or loss < state.best_validation_loss
        if best:
            state = replace(state, best_validation_loss=loss, best_step=state.step)
            if self._settings.config.choose == "best":
                checkpoint.save_weights(self._engine, self._work, state.step)
        seconds = state.seconds + time.monotonic() - began
        return replace(state, validation_loss=loss, seconds=seconds)

    def _pass(
        self, examples: Sequence[TrainingExample], batch: Sequence[int], step: int | None
    ) -> dict[str, float]:
        """Forward, and backward where `step` is given, over a batch. Returns its metrics."""
        engine, names = self._engine, self._objective.metrics
        turns = micro_batches(
            batch,
            self._shapes if step is not None else shapes(examples),
            self._settings.resources.max_tokens_per_micro_batch,
            engine.world_size,
        )
        denominator = self._objective.denominator([examples[index] for index in batch])
        sums = torch.zeros(len(names), dtype=torch.float64, device=engine.device)
        for number, turn in enumerate(turns):
            if step is not None:
                self._seed(f"{step}/{number}")
            mine = [examples[index] for index in turn[engine.rank]]
            loss, metrics = self._loss(mine, denominator)
            if metrics:
                sums += torch.stack([metrics[name] for name in names])
            if step is not None:
                engine.backward(loss, last=number == len(turns) - 1)
        return dict(zip(names, engine.total(sums.tolist()), strict=True))

    def _loss(
        self, examples: Sequence[TrainingExample], denominator: float
    ) -> tuple[Tensor, Metrics]:
        engine = self._engine
        if not examples:
            return completion_logps(engine.forward, EMPTY, engine.device).sum() * 0.0, {}
        return self._objective.loss(engine.forward, examples, denominator, engine.device)

    def _seed(self, where: str) -> None:
        """Dropout (LoRA's, in tuning) as a function of the seed and the place in the training."""
        name = f"{self._settings.seed}/{where}/{self._engine.rank}"
        torch.manual_seed(zlib.crc32(name.encode()))
