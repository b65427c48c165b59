"""The optimizer behind one small interface: DeepSpeed (ZeRO 0 to 3), or plain torch in one process.

An optimizer step is: `backward` for each micro-batch, the last one marked, then `step`. Losses are
already divided by the whole optimizer batch, so gradients are summed over micro-batches and
workers. All workers call all methods together.

A bfloat16 number has 8 significant bits: an update below a 256th of it is lost. So the optimizer
steps float32 master weights, and the gradients of micro-batches are accumulated in float32, too.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import TrainingConfig
from sirt_ray.training.batching import MicroBatch
from sirt_ray.training.forward import CompletionLogps, ModelCapabilities
from sirt_ray.training.shards import Shard, shard_of
from sirt_ray.training.zero import apply_master_weights, is_replicated, zero_shards

StateDict = dict[str, Tensor]
"""Parameter name -> value on the CPU."""

_NEVER = 2**31
"""Steps between DeepSpeed's own progress lines."""


class Engine(Protocol):
    """A model, its optimizer and the communication between workers."""

    rank: int
    world_size: int
    device: torch.device
    capabilities: ModelCapabilities
    """What the model supports."""

    @property
    def forward(self) -> Callable[[MicroBatch], Tensor]:
        """The forward pass: `CompletionLogps`."""
        ...

    def train(self, training: bool) -> None:
        """Set the model to training or evaluation mode."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate gradients; `last` marks the last micro-batch of the optimizer step."""
        ...

    def step(self, learning_rate: float) -> float:
        """Clip and apply the gradients, then clear them. Return their norm before clipping."""
        ...

    @property
    def replicated(self) -> bool:
        """Whether each worker has the whole optimizer's state, so that one of them writes it."""
        ...

    def shards(self) -> list[Shard]:
        """Return the optimizer's state in the memory of this worker, to be written or read into:
        all that a training needs to continue bit for bit."""
        ...

    def apply_shards(self) -> None:
        """Set the model's parameters to the master weights, which were read from a checkpoint."""
        ...

    def trained(self) -> StateDict | None:
        """Return the whole trained parameters on rank 0; None on the other ranks."""
        ...

    def sum_over_workers(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over the workers."""
        ...

    def barrier(self) -> None:
        """Block until all workers have called it."""
        ...


class Workers:
    """The processes of the initialised process group; this process only if there is no group."""

    def __init__(self, device: torch.device) -> None:
        grouped = torch.distributed.is_initialized()
        self.device = device
        self.rank = torch.distributed.get_rank() if grouped else 0
        self.world_size = torch.distributed.get_world_size() if grouped else 1

    def sum_over_workers(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over the workers."""
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            torch.distributed.all_reduce(summed)
        return summed.tolist()

    def barrier(self) -> None:
        """Block until all workers have called it."""
        self.sum_over_workers([0.0])


class PlainEngine(Workers):
    """The whole model in every process: forward passes in any number of processes, training in one.

    With `optimize=False` it only does forward passes.
    """

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
        self._master_weights = MasterWeights(self._trained.values() if optimize else ())
        self._optimizer = adamw(self._master_weights.stepped or self._trained.values(), config)
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
        norm = torch.nn.utils.clip_grad_norm_(self._master_weights.stepped, self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._master_weights.write_back()
        return float(norm)

    @property
    def replicated(self) -> bool:
        return True

    def shards(self) -> list[Shard]:
        stepped = zip(self._trained, self._master_weights.stepped, strict=True)
        return [shard_of(self._optimizer, master, name) for name, master in stepped]

    def apply_shards(self) -> None:
        self._master_weights.write_back()

    def trained(self) -> StateDict | None:
        return {name: parameter.detach().cpu().clone() for name, parameter in self._trained.items()}


class DeepSpeedEngine(Workers):
    """The model sharded over the workers by ZeRO.

    With `optimize=False` it only does forward passes (stage 3).
    """

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

    @property
    def replicated(self) -> bool:
        return is_replicated(self._optimizer)

    def shards(self) -> list[Shard]:
        return zero_shards(self._optimizer, _trained(self._engine.module))

    def apply_shards(self) -> None:
        apply_master_weights(self._optimizer)

    def trained(self) -> StateDict | None:
        import deepspeed

        state: StateDict = {}
        for name, parameter in _trained(self._engine.module).items():
            # One parameter at a time, so that no worker ever holds the whole model twice.
            with deepspeed.zero.GatheredParameters([parameter], enabled=self._stage == 3):
                if self.rank == 0:
                    state[name] = parameter.detach().cpu().clone()
        return state if self.rank == 0 else None

    def _plain_norm(self) -> float | None:
        """Return the gradient's norm where DeepSpeed clips but does not report it: without ZeRO
        and in float32. None otherwise."""
        if self._stage > 0 or self._engine.bfloat16_enabled():
            return None
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))


def deepspeed_config(config: TrainingConfig, resources: TrainerResources) -> dict[str, Any]:
    """Return what `deepspeed.initialize` is configured by; nothing else decides what it does.

    Batch sizes are nominal: the trainer counts the micro-batches of a step, marks the last one for
    DeepSpeed, and divides the loss by the whole batch itself. The trainer makes the optimizer too,
    also for offload: torch's is fused on the CPU as well, and DeepSpeed's would have to be compiled
    on every machine. In bfloat16 without ZeRO, DeepSpeed would accumulate gradients in bfloat16;
    stage 1 computes the same and accumulates in float32.
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


def adamw(parameters: Iterable[Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW without weight decay of vectors (norms, biases).

    It is fused: one pass over the memory of each tensor instead of one for each operation.
    """
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


class MasterWeights:
    """The parameters that the optimizer steps: float32 copies of bfloat16 and float16 parameters,
    and the float32 parameters themselves.

    The backward pass fills the gradient of a copy, parameter by parameter, so that no second set of
    gradients is held.
    """

    def __init__(self, trained: Iterable[Parameter]) -> None:
        self._trained = list(trained)
        self.stepped = [_stepped(parameter) for parameter in self._trained]

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the copies into the model's parameters."""
        for parameter, master in zip(self._trained, self.stepped, strict=True):
            if master is not parameter:
                parameter.copy_(master)


def _stepped(parameter: Parameter) -> Parameter:
    """Return the parameter itself, or a float32 copy that takes over its gradients."""
    if parameter.dtype not in (torch.bfloat16, torch.float16):
        return parameter
    master = Parameter(parameter.detach().float())

    def move_gradient(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    parameter.register_post_accumulate_grad_hook(move_gradient)
    return master


def _trained(model: CompletionLogps) -> dict[str, Parameter]:
    """Return the trained parameters by their names in the Hugging Face model."""
    named: Iterable[tuple[str, Parameter]] = model.model.named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def _set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed, on the CPU without its shared-memory extension: the extension only serves
    inference, and every new machine would have to compile it."""
    import deepspeed

    deepspeed.logger.setLevel("WARNING")
    if device.type == "cpu":
        setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010
    return deepspeed
