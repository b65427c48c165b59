"""How long sampling and training take, from operations and bytes. Estimates, none measured.

Sampling a token moves the weights and the cache through the GPU once and costs 2 operations for
each parameter; training one costs 6 (Kaplan et al. 2020, section 2.1). How near a machine comes to
its peak is assumed, see `ASSUMED`.
"""

from dataclasses import dataclass

from sirt_ray.config.resources import EngineConfig, TrainerResources
from sirt_ray.config.training import RefineConfig, TrainingConfig
from sirt_ray.planning import memory
from sirt_ray.planning.gpus import Gpu
from sirt_ray.planning.memory import Memory
from sirt_ray.planning.models import ModelShape

TRAINING_MFU = 0.35
"""Of a GPU's peak that training uses."""
PREFILL_MFU = 0.5
"""Likewise of computing prompts and of a full batch's decoding."""
BANDWIDTH_SHARE = 0.6
"""Of a GPU's memory bandwidth that decoding uses."""
PROMPT_TOKENS = 150
COMPLETION_SHARE = 0.5
"""Of `max_tokens` that a completion has in the mean."""
ASSUMED = (
    f"training runs at {TRAINING_MFU:.0%} of the GPUs' peak, prompts at {PREFILL_MFU:.0%}, decoding"
    f" at {BANDWIDTH_SHARE:.0%} of the memory's bandwidth",
    f"a prompt has {PROMPT_TOKENS} tokens, a completion half of its max_tokens",
)


@dataclass(frozen=True, slots=True)
class SamplingLoad:
    """Completions of one kind that a model is asked for."""

    completions: int
    per_prompt: float
    """Completions that share the computing of one prompt."""
    max_tokens: int

    @property
    def tokens(self) -> float:
        """Of all completions."""
        return self.completions * self.completion_tokens

    @property
    def completion_tokens(self) -> float:
        return self.max_tokens * COMPLETION_SHARE


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """What artifacts of one kind take."""

    kind: str
    artifacts: int = 0
    tokens: float = 0.0
    """Sampled, or trained on."""
    seconds: float | None = 0.0
    """One after the other; None: not known of one of them at least."""
    gpu_seconds: float | None = 0.0
    """Of the GPUs that work on them."""
    measured: int = 0
    """Of the artifacts: those whose time is taken from finished ones of their kind."""

    def plus(self, other: "TimeEstimate") -> "TimeEstimate":
        return TimeEstimate(
            self.kind,
            self.artifacts + other.artifacts,
            self.tokens + other.tokens,
            _sum(self.seconds, other.seconds),
            _sum(self.gpu_seconds, other.gpu_seconds),
            self.measured + other.measured,
        )


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def sampling_seconds(
    asking: SamplingLoad,
    shape: ModelShape,
    engine: EngineConfig,
    held: Memory,
    gpu: Gpu,
    replicas: int,
) -> float:
    """Seconds on `replicas` engines, each on tensor_parallel_size GPUs.

    sequences  together: max_num_seqs, what the KV cache holds, what there is to do; the least
    decoding   of one token of each: the longer of
                   (weights + sequences x mean length x KV bytes) / (bandwidth x share), on one GPU
                   2 x active parameters x sequences / (shards x peak x share)
    prompts    2 x active parameters x tokens / (shards x peak x share), once for all completions
    """
    shards, length = engine.tensor_parallel_size, asking.completion_tokens
    together = min(
        float(engine.max_num_seqs),
        memory.kv_tokens(shape, engine, held, gpu=True) / (PROMPT_TOKENS + length),
        asking.completions / replicas,
    )
    together = max(1.0, together)
    weights = held.weights * _touched(shape, together)
    cache = together * (PROMPT_TOKENS + length / 2) * shape.kv_bytes(shards)
    moved = (weights + cache) / (gpu.bandwidth * BANDWIDTH_SHARE)
    operations = shards * gpu.peak_flops * PREFILL_MFU
    computed = 2 * (shape.active + shape.head) * together / operations
    decoding = asking.tokens * max(moved, computed) / together
    prompts = asking.completions / asking.per_prompt
    prefill = prompts * PROMPT_TOKENS * 2 * shape.active / operations
    return (decoding + prefill) / replicas


def training_seconds(
    tokens: float,
    shape: ModelShape,
    config: TrainingConfig,
    trainer: TrainerResources,
    gpu: Gpu,
    forward_only: bool = False,
) -> float:
    """Seconds for so many tokens on all workers: tokens x operations / (workers x peak x share).

    Operations of a token, for each parameter: 2 forward, 2 for the activations' gradients, 2 for
    those of parameters that are trained (none of a frozen base), 2 more with gradient
    checkpointing; 2 alone for the reference. Attention over so short texts is left out.
    """
    passed = shape.active + shape.head
    if forward_only:
        each = 2.0 * passed
    else:
        trained = passed if config.lora is None else shape.lora(config.lora.rank)
        each = 4.0 * passed + 2.0 * trained
        if trainer.gradient_checkpointing:
            each += 2.0 * shape.active
    return tokens * each / (trainer.num_workers * gpu.peak_flops * TRAINING_MFU)


def example_tokens(config: TrainingConfig, max_tokens: int) -> float:
    """Of a training example in the mean: a prompt and a completion; of a pair two, behind the
    prompt that they share."""
    of_pairs = isinstance(config, RefineConfig) and config.loss not in ("rft", "kto")
    tokens = PROMPT_TOKENS + (2 if of_pairs else 1) * max_tokens * COMPLETION_SHARE
    return min(tokens, float(memory.longest_example(config)))


def _touched(shape: ModelShape, together: float) -> float:
    """Share of the weights that a step of so many sequences reads: of experts, those that at least
    one of them is sent to, if they are sent anywhere alike."""
    if shape.experts == 1:
        return 1.0
    missed = (1 - shape.experts_per_token / shape.experts) ** together
    dense = shape.parameters - shape.linear
    return (dense + shape.linear * (1 - missed)) / shape.parameters
