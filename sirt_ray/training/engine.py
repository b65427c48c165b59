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
from sirt_ray.config.training import TrainingConfig
from sirt_ray.errors import ArtifactError
from sirt_ray.training.batching import MicroBatch
from sirt_ray.training.forward import CompletionLogps, ModelCapabilities

# FOLDED training.zero: Config -> DeepSpeed's dictionary. Nothing else decides what DeepSpeed does.

_NEVER = 2**31
"""Steps between DeepSpeed's own progress lines."""


def deepspeed_config(config: TrainingConfig, resources: TrainerResources) -> dict[str, Any]:
    """What `deepspeed.initialize` is given.

    Batch sizes are nominal: the micro-batches of a step are counted by the trainer, which tells
    DeepSpeed the last one of each step and divides the loss by the whole batch itself. The
    optimizer is made by the trainer too, also for offload: torch's is fused on the CPU as well, and
    DeepSpeed's would have to be compiled on every machine. In bfloat16 without ZeRO DeepSpeed would
    accumulate gradients in bfloat16; stage 1 computes the same and accumulates in float32.
    """
    bfloat16 = config.dtype == "bfloat16"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": {
            "stage": max(resources.zero_stage, 1) if bfloat16 else resources.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": False,
            **({} if resources.offload == "none" else {"offload_optimizer": {"device": "cpu"}}),
            **({"offload_param": {"device": "cpu"}} if resources.offload == "parameters" else {}),
        },
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
    }


# FOLDED training.masters: What an optimizer works on where parameters are too coarse for small updates.
#
# A bfloat16 number has 8 significant bits: an update below a 256th of it is lost. So the optimizer
# keeps float32 copies, and gradients of micro-batches are added up in float32, too.


class MasterWeights:
    """For each trained parameter the one that is stepped: itself, or its float32 copy.

    A copy's gradient is filled by the backward pass, parameter by parameter, so that no second set
    of gradients is held.
    """

    def __init__(self, trained: Iterable[Parameter]) -> None:
        self._trained = list(trained)
        self.stepped = [_stepped(parameter) for parameter in self._trained]

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the copies into the model."""
        for parameter, master in zip(self._trained, self.stepped, strict=True):
            if master is not parameter:
                parameter.copy_(master)

    def state(self) -> list[Tensor]:
        return [master.detach() for master in self.stepped]

    @torch.no_grad()
    def load(self, state: Iterable[Tensor]) -> None:
        for master, saved in zip(self.stepped, state, strict=True):
            master.copy_(saved)
        self.write_back()


def _stepped(parameter: Parameter) -> Parameter:
    if parameter.dtype not in (torch.bfloat16, torch.float16):
        return parameter
    master = Parameter(parameter.detach().float())

    def take(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    parameter.register_post_accumulate_grad_hook(take)
    return master


State = dict[str, Tensor]
"""Parameter name -> value on the CPU."""


class Engine(Protocol):
    rank: int
    world_size: int
    device: torch.device
    capabilities: ModelCapabilities
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
        self.capabilities = model.capabilities
        self._model = model.to(device)
        self._trained = _trained(self._model)
        self._masters = MasterWeights(self._trained.values() if optimize else ())
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
        self.capabilities = model.capabilities
        deepspeed = _deepspeed(device)
        self._stage = resources.zero_stage
        self._adapters_only = config.lora is not None
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model.to(device),
            optimizer=adamw(_trained(model).values(), config) if optimize else None,
            config=deepspeed_config(config, resources),
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
