"""Memory of one GPU, part by part, in bytes: of an engine that serves, and of a worker that trains.

They are estimates to place by, on the safe side where something depends on the data. What each part
is follows from how our own engines and trainer work; sources stand with the formulas.
"""

import math
from dataclasses import dataclass, fields

from sirt_ray.config.resources import EngineConfig, TrainerResources
from sirt_ray.config.training import LoraConfig, RefineConfig, TrainingConfig
from sirt_ray.planning.gpus import GB
from sirt_ray.planning.models import ModelShape

VLLM_SHARE = 0.92
"""Of a GPU's memory that vLLM uses: its `gpu_memory_utilization` by default (0.29)."""
BATCHED_TOKENS = 8192
"""That vLLM computes at once at most, where it serves on a large GPU (0.29)."""
CONTEXT = int(1.5 * GB)
"""Of a process on a GPU: CUDA's context, the libraries' kernels and workspaces, NCCL's buffers,
what the allocator cannot use."""
BUCKET = 500_000_000
"""Numbers that DeepSpeed reduces at once: `reduce_bucket_size`; held whole, however few there
are."""
LIVE_PARAMETERS = 1_000_000_000
"""That ZeRO-3 has gathered at once at most: `stage3_max_live_parameters`."""
HEAD_CHUNK = 128 * 2**20
"""Bytes of logits in float32 that the trainer's head makes at once: `training/forward.py`."""
NF4_BYTES = 0.5 + 0.127 / 8
"""Of a parameter in 4 bits with double quantisation: 4 bits and 0.127 of scales (Dettmers et al.
2023, section 3)."""
KEYS_REPEATED = 2
"""Keys and values that packed attention holds for each token: a completion's are its prompt's,
repeated, and its own; twice where a prompt is as long as its completion."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU, or of one process where there is none."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    kv_cache: float = 0.0
    other: float = 0.0
    """Buffers for communication, and `CONTEXT`."""
    host: float = 0.0
    """Of the machine's memory instead: what is offloaded. Not in the total."""

    @property
    def total(self) -> float:
        return sum(getattr(self, part.name) for part in fields(self)) - self.host

    def times(self, sharing: int) -> "Memory":
        """Of several workers on one GPU."""
        return Memory(*(getattr(self, part.name) * sharing for part in fields(self)))


def of_engine(shape: ModelShape, engine: EngineConfig, gpu: bool, capacity: float | None) -> Memory:
    """One shard of an engine on a GPU of `capacity` bytes, or an engine on the CPU.

    weights       parameters x bytes of a value / tensor_parallel_size
    activations   BATCHED_TOKENS x 2 x (6 hidden + 3 intermediate x experts a token / shards), of
                  the two widest places of a layer, and 10 bytes x max_num_seqs x vocabulary of
                  logits, in float32 and as probabilities
    KV cache      what is left of VLLM_SHARE of the GPU, or kv_cache_gib; see `ModelShape.kv_bytes`

    Negative where nothing is left.
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
    """Tokens that the KV cache must hold at least: vLLM refuses to start with fewer."""
    return engine.max_model_len or shape.max_length


def kv_tokens(shape: ModelShape, engine: EngineConfig, memory: Memory, gpu: bool) -> float:
    """That the KV cache of an engine holds."""
    shards = engine.tensor_parallel_size if gpu else 1
    return memory.kv_cache / shape.kv_bytes(shards, _value_bytes(engine, gpu))


def of_trainer(
    shape: ModelShape, config: TrainingConfig, trainer: TrainerResources, gpu: bool = True
) -> Memory:
    """One worker of W, for P parameters of which T are trained (all, or LoRA's adapters).

    ZeRO (Rajbhandari et al. 2020, section 3.1) counts for mixed precision with Adam 2 bytes of
    weights, 2 of gradients and 12 of optimizer for each parameter: float32 copy, momentum,
    variance. Ours are, by `training/zero.py`:

                  bfloat16                                float32
    weights       2 P; stage 3: 2 P / W, and 2 bytes of   4 P; stage 3 likewise
                  LIVE_PARAMETERS
    gradients     4 T, added up in float32; 2, 3: / W     4 T; 2, 3: / W
    optimizer     12 T / W (stage 0 is 1)                 stage 0: 8 T; else 12 T / W
    other         BUCKET x 4 (2 in stages 2 and 3); the step's flat copy of 4 T / W (in stage 1
                  two, its partition's gradients being one), as far as it is larger than the
                  activations, in whose place it comes; CONTEXT

    QLoRA: NF4_BYTES for each parameter of the layers' matrices, 2 for the others. Offload moves
    the optimizer, and the gradients of stages 2 and 3, to the host; `parameters` the weights, too.
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
        # On the CPU what is not used of the bucket is never touched.
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
    """What the backward pass of one micro-batch needs.

    Tokens: max_tokens_per_micro_batch, or one example where it is longer: max_length, of a pair
    twice. For each of them and each layer, `layer_bytes`; with gradient checkpointing the layer's
    input alone, and all of one layer, which is computed again (Chen et al. 2016). After the layers
    the norm, and the head: it sees HEAD_CHUNK of logits at once, each of them in float32 as logit,
    log-probability and gradient, and in bfloat16 twice more.
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
    """Tokens at most: of a pair, a prompt and both completions."""
    of_pairs = isinstance(config, RefineConfig) and config.loss not in ("rft", "kto")
    return config.max_length * (2 if of_pairs else 1)


def layer_bytes(shape: ModelShape, config: TrainingConfig) -> float:
    """Bytes that one layer keeps for one token, with v bytes a value.

    In the way of Korthikanti et al. 2022, section 4.1, for a layer with RMSNorm, rotary positions,
    attention that keeps no scores (FlashAttention), and SwiGLU; counted operation by operation:

    two norms     (4 + 2 v) hidden each: the input in float32, the normalised, what the matrices see
    attention     v (2 queries + 2 x KEYS_REPEATED keys): queries, keys, values, result
    feed-forward  4 v intermediate of each expert a token sees: gate, its SiLU, up, their product
    norms of queries and keys, where there are (Qwen3): (4 + 2 v) for each number of both
    LoRA          v x rank for each of 7 matrices; the normalised are not kept, as norms are frozen
    """
    value = 2 if config.dtype == "bfloat16" else 4
    # In float32 the input that is kept is the residual stream itself, once.
    norms = 2 * (4 + (1 if config.lora else 2) * value) * shape.hidden
    attention = value * (2 * shape.queries + 2 * KEYS_REPEATED * shape.keys)
    experts = 4 * value * shape.intermediate * shape.experts_per_token
    if shape.qk_norm:
        attention += (4 + 2 * value) * (shape.queries + shape.keys)
    adapters = 0 if config.lora is None else 7 * value * config.lora.rank
    return float(norms + attention + experts + adapters)


def _held(shape: ModelShape, lora: LoraConfig | None, value: int) -> float:
    """Bytes of the whole weights."""
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
    """Workers on one GPU."""
    return max(1, math.floor(1 / gpus_per_worker)) if gpus_per_worker else 1
