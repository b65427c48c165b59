"""The optimizer behind one small interface: DeepSpeed (ZeRO 0 to 3), or plain torch in a process.

A step is: `backward` for each micro-batch, the last one marked, then `step`. Losses are already
divided by the whole optimizer batch, so gradients are summed over micro-batches and workers.
All methods are called by all workers together.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from sirt_ray.config.resources import TrainerResources
from sirt_ray.errors import ArtifactError
from sirt_ray.optimization import TrainingConfig
from sirt_ray.training import zero
from sirt_ray.training.forward import Abilities, CompletionLogps
from sirt_ray.training.masters import Masters
from sirt_ray.training.packing import MicroBatch

State = dict[str, Tensor]
"""Parameter name -> value on the CPU."""


class Engine(Protocol):
    rank: int
    world_size: int
    device: torch.device
    abilities: Abilities
    """What its model can be asked."""

    @property
    def forward(self) -> Callable[[MicroBatch], Tensor]:
        """`CompletionLogps`."""
        ...

    def train(self, training: bool) -> None: ...

    def backward(self, loss: Tensor, last: bool) -> None: ...

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear. Returns the gradient's norm before clipping."""
        ...

    def save(self, folder: Path) -> None:
        """Everything that `load` needs to go on bit for bit."""
        ...

    def load(self, folder: Path) -> None: ...

    def trained(self) -> State | None:
        """The trained parameters, whole, on rank 0; None on the others."""
        ...

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the workers."""
        ...

    def wait(self) -> None:
        """Until all workers are here."""
        ...


def adamw(parameters: Iterable[Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; vectors (norms, biases) do not decay. Fused: one pass over the memory of each tensor
    in place of one for each operation."""
    trained = list(parameters)
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.adam_betas,
        fused=True,
    )


def _trained(model: CompletionLogps) -> dict[str, Parameter]:
    """By their names in the Hugging Face model."""
    named: Iterable[tuple[str, Parameter]] = model.model.named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


class Workers:
    """The processes of the initialised process group, or this one alone where there is none."""

    def __init__(self, device: torch.device) -> None:
        grouped = torch.distributed.is_initialized()
        self.device = device
        self.rank = torch.distributed.get_rank() if grouped else 0
        self.world_size = torch.distributed.get_world_size() if grouped else 1

    def total(self, values: Sequence[float]) -> list[float]:
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            torch.distributed.all_reduce(summed)
        return summed.tolist()

    def wait(self) -> None:
        self.total([0.0])


class PlainEngine(Workers):
    """The model whole in every process: forward passes anywhere, training in one process.
    `optimize=False`: forward passes only."""

    def __init__(
        self,
        model: CompletionLogps,
        config: TrainingConfig,
        device: torch.device,
        optimize: bool = True,
    ) -> None:
        super().__init__(device)
        self.abilities = model.abilities
        self._model = model.to(device)
        self._trained = _trained(self._model)
        self._masters = Masters(self._trained.values() if optimize else ())
        self._optimizer = adamw(self._masters.stepped or self._trained.values(), config)
        self._max_grad_norm = config.max_grad_norm

    @property
    def forward(self) -> Callable[[MicroBatch], Tensor]:
        return self._model

    def train(self, training: bool) -> None:
        self._model.train(training)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        assert self.world_size == 1, "gradients are not shared between processes"
        _set_learning_rate(self._optimizer, learning_rate)
        norm = torch.nn.utils.clip_grad_norm_(self._masters.stepped, self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._masters.write_back()
        return float(norm)

    def save(self, folder: Path) -> None:
        state = {"trained": self._masters.state(), "optimizer": self._optimizer.state_dict()}
        torch.save(state, folder / "state.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", map_location=self.device, weights_only=True)
        self._masters.load(state["trained"])
        self._optimizer.load_state_dict(state["optimizer"])

    def trained(self) -> State | None:
        return {name: parameter.detach().cpu().clone() for name, parameter in self._trained.items()}


class DeepSpeedEngine(Workers):
    """The model sharded over the workers. `optimize=False`: forward passes only (stage 3)."""

    def __init__(
        self,
        model: CompletionLogps,
        config: TrainingConfig,
        resources: TrainerResources,
        device: torch.device,
        optimize: bool = True,
    ) -> None:
        super().__init__(device)
        self.abilities = model.abilities
        deepspeed = _deepspeed(device)
        self._stage = resources.zero_stage
        self._adapters_only = config.lora is not None
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model.to(device),
            optimizer=adamw(_trained(model).values(), config) if optimize else None,
            config=zero.deepspeed_config(config, resources),
        )

    @property
    def forward(self) -> Callable[[MicroBatch], Tensor]:
        return self._engine

    def train(self, training: bool) -> None:
        self._engine.train(training)

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over the workers; the loss is a share of a sum.
        self._engine.backward(loss * self.world_size)

    def step(self, learning_rate: float) -> float:
        _set_learning_rate(self._optimizer, learning_rate)
        norm = self._plain_norm()
        self._engine.step()
        return norm if norm is not None else float(self._engine.get_global_grad_norm())

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(
            str(folder),
            tag="engine",
            save_latest=False,
            exclude_frozen_parameters=self._adapters_only,
        )

    def load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(
            str(folder), tag="engine", load_module_strict=not self._adapters_only
        )
        if path is None:
            raise ArtifactError(
                f"The checkpoint {folder} is not complete. Delete it to go on from the one before"
            )

    def trained(self) -> State | None:
        import deepspeed

        state: State = {}
        for name, parameter in _trained(self._engine.module).items():
            # One parameter at a time, so that no worker ever holds the whole model twice.
            with deepspeed.zero.GatheredParameters([parameter], enabled=self._stage == 3):
                if self.rank == 0:
                    state[name] = parameter.detach().cpu().clone()
        return state if self.rank == 0 else None

    def _plain_norm(self) -> float | None:
        """Without ZeRO and in float32 DeepSpeed clips but does not tell the norm."""
        if self._stage > 0 or self._engine.bfloat16_enabled():
            return None
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))


def _set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _deepspeed(device: torch.device) -> Any:
    """DeepSpeed, on the CPU without its shared-memory extension: that one only serves inference
    and would have to be compiled by every new machine."""
    import deepspeed

    deepspeed.logger.setLevel("WARNING")
    if device.type == "cpu":
        setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010
    return deepspeed
