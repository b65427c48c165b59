"""Memory of one GPU, part by part, in bytes: of an engine that serves and of a worker that trains.

These are estimates for placement, conservative where something depends on the data. The parts
follow from how this package's engines and trainer work; the formulas name their sources.
"""

import math
from dataclasses import dataclass, fields

from sirt_ray.config.resources import EngineConfig, TrainerResources
from sirt_ray.config.training import LoraConfig, RefineConfig, TrainingConfig
from sirt_ray.planning.gpus import GB
from sirt_ray.planning.models import ModelShape

VLLM_SHARE = 0.92
"""Share of a GPU's memory that vLLM uses: its default `gpu_memory_utilization` (0.29)."""
BATCHED_TOKENS = 8192
"""Default of vLLM's `max_num_batched_tokens` when serving on a large GPU (0.29)."""
CONTEXT = int(1.5 * GB)
"""Bytes of a process on a GPU for CUDA's context, the libraries' kernels and workspaces, NCCL's
buffers, and fragmentation of the allocator."""
BUCKET = 500_000_000
"""Numbers that DeepSpeed reduces at once (`reduce_bucket_size`); always allocated in full."""
LIVE_PARAMETERS = 1_000_000_000
"""Maximum of parameters that ZeRO-3 has gathered at once: `stage3_max_live_parameters`."""
HEAD_CHUNK = 128 * 2**20
"""Bytes of float32 logits that the trainer's head computes at once, see `training/forward.py`."""
NF4_BYTES = 0.5 + 0.127 / 8
"""Bytes of a parameter in 4 bits with double quantisation: 4 bits, and 0.127 bits of scales
(Dettmers et al. 2023, section 3)."""
KEYS_REPEATED = 2
"""Keys and values that packed attention holds for each token: a completion has its own and a copy
of its prompt's; 2 if a prompt is as long as its completion."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU, or of one process on the CPU."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    kv_cache: float = 0.0
    other: float = 0.0
    """Communication buffers, and `CONTEXT`."""
    host: float = 0.0
    """Host memory of what is offloaded. Not part of the total."""

    @property
    def total(self) -> float:
        """Sum of all parts on the GPU, without `host`."""
        return sum(getattr(self, part.name) for part in fields(self)) - self.host

    def times(self, sharing: int) -> "Memory":
        """Return the memory of `sharing` workers on one GPU."""
        return Memory(*(getattr(self, part.name) * sharing for part in fields(self)))


def of_engine(shape: ModelShape, engine: EngineConfig, gpu: bool, capacity: float | None) -> Memory:
    """Return the memory of one shard of an engine on a GPU of `capacity` bytes, or of an engine on
    the CPU.

    weights       parameters x bytes of a value / tensor_parallel_size
    activations   BATCHED_TOKENS x 2 x (6 hidden + 3 intermediate x experts per token / shards), for
                  the two widest points of a layer, and 10 bytes x max_num_seqs x vocabulary for
                  logits, in float32 and as probabilities
    KV cache      the rest of VLLM_SHARE of the GPU, or kv_cache_gib; see `ModelShape.kv_bytes`

    The KV cache is negative if there is no rest.
    """
    value = _value_bytes(engine, gpu)
    shards = engine.tensor_parallel_size if gpu else 1
    if shape.quantized_bytes is not None:
        weights = shape.quantized_bytes / shards
    else:
        weights = shape.parameters * value / shards
    wide = 6 * shape.hidden + 3 * shape.intermediate * shape.experts_per_token / shards
    logits = 10 * engine.max_num_seqs * shape.vocabulary
    activations = BATCHED_TOKENS * 2 * wide + logits
    if not gpu or capacity is None:
        cache = (engine.kv_cache_gib or 0.25) * 2**30
        return Memory(weights=weights, activations=activations if gpu else 0.0, kv_cache=cache)
    if engine.kv_cache_gib is not None:
        cache = engine.kv_cache_gib * 2**30
    else:
        cache = VLLM_SHARE * capacity - weights - activations - CONTEXT
    return Memory(weights=weights, activations=activations, kv_cache=cache, other=CONTEXT)


def longest_sequence(shape: ModelShape, engine: EngineConfig) -> int:
    """Return the tokens that the KV cache must hold: vLLM refuses to start with fewer."""
    return engine.max_model_len or shape.max_length


def kv_tokens(shape: ModelShape, engine: EngineConfig, memory: Memory, gpu: bool) -> float:
    """Return the tokens that the KV cache of an engine holds."""
    shards = engine.tensor_parallel_size if gpu else 1
    return memory.kv_cache / shape.kv_bytes(shards, _value_bytes(engine, gpu))


def of_trainer(
    shape: ModelShape, config: TrainingConfig, trainer: TrainerResources, gpu: bool = True
) -> Memory:
    """Return the memory of one of W workers, for P parameters of which T are trained (all, or
    LoRA's adapters).

    For mixed precision with Adam, ZeRO (Rajbhandari et al. 2020, section 3.1) counts 2 bytes of
    weights, 2 of gradients and 12 of optimizer states per parameter: float32 copy, momentum,
    variance. This trainer (`training/engine.py`) takes:

                  bfloat16                                float32
    weights       2 P; stage 3: 2 P / W, and 2 bytes x    4 P; stage 3 likewise
                  LIVE_PARAMETERS
    gradients     4 T, accumulated in float32; in stages  4 T; in stages 2 and 3: / W
                  2 and 3: / W
    optimizer     12 T / W (stage 0 runs as stage 1)      stage 0: 8 T; else 12 T / W
    other         BUCKET x 4 bytes (x 2 in stages 2 and 3); the flat copy of 4 T / W in the
                  optimizer step (two copies in stage 1, where one holds the partition's
                  gradients), as far as it is larger than the activations, which are freed before
                  it; CONTEXT

    QLoRA: NF4_BYTES per parameter of the layers' matrices, 2 bytes for the others. Offload moves
    the optimizer states, and the gradients of stages 2 and 3, to the host; `parameters` also the
    weights.
    """
    bf16 = config.dtype == "bfloat16"
    value = 2 if bf16 else 4
    workers = trainer.num_workers
    stage = max(trainer.zero_stage, 1) if bf16 else trainer.zero_stage
    trained = shape.parameters if config.lora is None else shape.lora(config.lora.rank)
    weights = _held(shape, config.lora, value)
    gathered = 0.0
    if stage == 3:
        weights /= workers
        gathered = value * min(shape.parameters, LIVE_PARAMETERS)
    gradients = 4.0 * trained / (workers if stage >= 2 else 1)
    optimizer = 8.0 * trained if stage == 0 else 12.0 * trained / workers
    of_batch = activations(shape, config, trainer)
    other = float(CONTEXT) if gpu else 0.0
    if stage > 0:
        # On the CPU the unused part of the bucket is never touched, so it takes no memory.
        bucket = BUCKET if gpu else min(BUCKET, trained)
        flat = (8.0 if stage == 1 else 4.0) * trained / workers
        other += bucket * (4 if stage == 1 else value) + max(0.0, flat - of_batch)
    host = 0.0
    if trainer.offload != "none":
        host, optimizer = host + optimizer, 0.0
        if stage >= 2:
            host, gradients = host + gradients, 0.0
    if trainer.offload == "parameters":
        host, weights = host + weights, 0.0
    return Memory(
        weights=weights + gathered,
        gradients=gradients,
        optimizer=optimizer,
        activations=of_batch,
        other=other,
        host=host,
    )


def activations(shape: ModelShape, config: TrainingConfig, trainer: TrainerResources) -> float:
    """Return the bytes that the backward pass of one micro-batch needs.

    Tokens: max_tokens_per_micro_batch, or the longest example if that is longer (max_length, twice
    for a pair). For each token and layer `layer_bytes`; with gradient checkpointing only the
    layer's input, and `layer_bytes` of the one layer that is recomputed (Chen et al. 2016). After
    the layers the norm, and the head, which computes HEAD_CHUNK of logits at once: each in float32
    as logit, log-probability and gradient, and twice more in bfloat16.
    """
    value = 2 if config.dtype == "bfloat16" else 4
    tokens = max(trainer.max_tokens_per_micro_batch, longest_example(config))
    layer = layer_bytes(shape, config)
    if trainer.gradient_checkpointing:
        kept = shape.layers * value * shape.hidden + layer
    else:
        kept = shape.layers * layer
    last = (4 + 3 * value) * shape.hidden
    logits = min(tokens, max(1, HEAD_CHUNK // (4 * shape.vocabulary))) * shape.vocabulary
    return tokens * (kept + last) + logits * (16 if value == 2 else 12)


def longest_example(config: TrainingConfig) -> int:
    """Return the most tokens of an example: for a pair, a prompt and both completions."""
    of_pairs = isinstance(config, RefineConfig) and config.loss not in ("rft", "kto")
    return config.max_length * (2 if of_pairs else 1)


def layer_bytes(shape: ModelShape, config: TrainingConfig) -> float:
    """Return the bytes that one layer saves for one token, with v bytes per value.

    After Korthikanti et al. 2022, section 4.1, for a layer with RMSNorm, rotary positions,
    attention that stores no scores (FlashAttention), and SwiGLU; counted operation by operation:

    two norms     (4 + 2 v) hidden each: input in float32, normalised values, input of the matrices
    attention     v (2 queries + 2 x KEYS_REPEATED keys): queries, keys, values, result
    feed-forward  4 v intermediate per active expert: gate, its SiLU, up, their product
    QK norms      if there are any (Qwen3): (4 + 2 v) for each number of queries and keys
    LoRA          v x rank for each of 7 matrices; normalised values are not saved (frozen norms)
    """
    value = 2 if config.dtype == "bfloat16" else 4
    # In float32 the saved input is the residual stream itself, once.
    norms = 2 * (4 + (1 if config.lora else 2) * value) * shape.hidden
    attention = value * (2 * shape.queries + 2 * KEYS_REPEATED * shape.keys)
    experts = 4 * value * shape.intermediate * shape.experts_per_token
    if shape.qk_norm:
        attention += (4 + 2 * value) * (shape.queries + shape.keys)
    adapters = 0 if config.lora is None else 7 * value * config.lora.rank
    return float(norms + attention + experts + adapters)


def _held(shape: ModelShape, lora: LoraConfig | None, value: int) -> float:
    """Return the bytes of all weights, without sharding."""
    if lora is None:
        return float(value * shape.parameters)
    adapters = value * shape.lora(lora.rank)
    if lora.quantize is None:
        return float(value * shape.parameters + adapters)
    return NF4_BYTES * shape.linear + value * (shape.parameters - shape.linear) + adapters


def _value_bytes(engine: EngineConfig, gpu: bool) -> int:
    if engine.dtype == "auto":
        return 2 if gpu else 4
    return 4 if engine.dtype == "float32" else 2


def sharing(gpus_per_worker: float) -> int:
    """Return the number of workers on one GPU."""
    return max(1, math.floor(1 / gpus_per_worker)) if gpus_per_worker else 1
