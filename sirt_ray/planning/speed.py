"""Duration of sampling and training, from operations and bytes. Estimates; none has been measured.

Sampling a token reads the weights and the KV cache from the GPU's memory once and costs 2
operations per parameter; training on a token costs 6 (Kaplan et al. 2020, section 2.1). How close a
machine comes to its peak is assumed, see `ASSUMED`.
"""

from dataclasses import dataclass

from sirt_ray.config.resources import EngineConfig, TrainerResources
from sirt_ray.config.training import RefineConfig, TrainingConfig
from sirt_ray.planning import memory
from sirt_ray.planning.gpus import Gpu
from sirt_ray.planning.memory import Memory
from sirt_ray.planning.models import ModelShape

TRAINING_MFU = 0.35
"""Share of a GPU's peak operations that training uses."""
PREFILL_MFU = 0.5
"""Share of the peak that prefill and the decoding of a full batch use."""
BANDWIDTH_SHARE = 0.6
"""Share of a GPU's memory bandwidth that decoding uses."""
PROMPT_TOKENS = 150
"""Mean length of a prompt."""
COMPLETION_SHARE = 0.5
"""Mean length of a completion, as a share of `max_tokens`."""
ASSUMED = (
    f"training runs at {TRAINING_MFU:.0%} of the GPUs' peak, prompts at {PREFILL_MFU:.0%}, decoding"
    f" at {BANDWIDTH_SHARE:.0%} of the memory's bandwidth",
    f"a prompt has {PROMPT_TOKENS} tokens, a completion half of its max_tokens",
)


@dataclass(frozen=True, slots=True)
class SamplingLoad:
    """The completions that are sampled from one model for one artifact."""

    completions: int
    per_prompt: float
    """Completions that share one prefill of their prompt."""
    max_tokens: int

    @property
    def tokens(self) -> float:
        """Tokens of all completions."""
        return self.completions * self.completion_tokens

    @property
    def completion_tokens(self) -> float:
        """Mean tokens of a completion."""
        return self.max_tokens * COMPLETION_SHARE


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Estimated duration of the artifacts of one kind."""

    kind: str
    artifacts: int = 0
    tokens: float = 0.0
    """Tokens that are sampled, or trained on."""
    seconds: float | None = 0.0
    """Sum over the artifacts; None if it is not known for one of them."""
    gpu_seconds: float | None = 0.0
    """Seconds times the GPUs in use; None likewise."""
    measured: int = 0
    """Number of artifacts whose time is taken from finished ones of their kind."""

    def plus(self, other: "TimeEstimate") -> "TimeEstimate":
        """Return the sum of two estimates, with the kind of the first."""
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
    load: SamplingLoad,
    shape: ModelShape,
    engine: EngineConfig,
    held: Memory,
    gpu: Gpu,
    replicas: int,
) -> float:
    """Return the seconds on `replicas` engines, each on tensor_parallel_size GPUs.

    batch      the least of max_num_seqs, the sequences that fit the KV cache, and those to sample
    decoding   of one token per sequence, the longer of
                   (weights + batch x mean length x KV bytes) / (bandwidth x share), on one GPU
                   2 x active parameters x batch / (shards x peak x share)
    prefill    2 x active parameters x tokens / (shards x peak x share), once per prompt
    """
    shards, length = engine.tensor_parallel_size, load.completion_tokens
    batch = min(
        float(engine.max_num_seqs),
        memory.kv_tokens(shape, engine, held, gpu=True) / (PROMPT_TOKENS + length),
        load.completions / replicas,
    )
    batch = max(1.0, batch)
    weights = held.weights * _touched(shape, batch)
    cache = batch * (PROMPT_TOKENS + length / 2) * shape.kv_bytes(shards)
    moved = (weights + cache) / (gpu.bandwidth * BANDWIDTH_SHARE)
    operations = shards * gpu.peak_flops * PREFILL_MFU
    computed = 2 * (shape.active + shape.head) * batch / operations
    decoding = load.tokens * max(moved, computed) / batch
    prompts = load.completions / load.per_prompt
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
    """Return the seconds for `tokens` on all workers: tokens x operations / (workers x peak x
    share).

    Operations per token and parameter: 2 for the forward pass, 2 for the gradients of activations,
    2 for the gradients of trained parameters (0 for a frozen base), and 2 more with gradient
    checkpointing; only the first 2 for the reference (`forward_only`). Attention is left out, since
    the texts are short.
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
    """Return the mean tokens of a training example: a prompt with a completion or, for a pair, with
    the two completions that share it."""
    of_pairs = isinstance(config, RefineConfig) and config.loss not in ("rft", "kto")
    tokens = PROMPT_TOKENS + (2 if of_pairs else 1) * max_tokens * COMPLETION_SHARE
    return min(tokens, float(memory.longest_example(config)))


def _touched(shape: ModelShape, batch: float) -> float:
    """Return the share of the weights that a decoding step of `batch` sequences reads. Of a mixture
    of experts these are the experts that at least one token is routed to, with uniform routing."""
    if shape.experts == 1:
        return 1.0
    missed = (1 - shape.experts_per_token / shape.experts) ** batch
    dense = shape.parameters - shape.linear
    return (dense + shape.linear * (1 - missed)) / shape.parameters
