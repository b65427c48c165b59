"""Settings of vLLM, and how many calls an engine has in flight, as plain values."""

import math
from typing import Any

from sirt_ray.config.resources import EngineConfig
from sirt_ray.on_ray.engine import vllm_worker
from sirt_ray.on_ray.engine.lora import lora_kwargs

_CPU_KV_CACHE_GIB = 0.25
_CPU_BLOCK_TOKENS = 32
"""Tokens in a block of the KV cache. A prompt's whole blocks are computed once for all its
completions; vLLM's 128 on CPU is more than many prompts have."""
_BUSY_SHARE = 0.7
"""Share of `max_num_seqs` above which another replica is worth starting."""
_QUEUE_SHARE = 3.0
"""Sequences in flight for one engine, as a multiple of `max_num_seqs`."""
_SEQUENCES_PER_CALL = 32
_CALLS_PER_ENGINE = 8
"""The least number of calls that fill an engine."""


def engine_kwargs(engine: EngineConfig, gpu: bool) -> dict[str, Any]:
    """Return vLLM's arguments.

    On CPU: float32, because bfloat16 attention uses AMX instructions that end the process on some
    machines; eager, because compiling costs minutes; a fixed KV cache, because the default is a
    share of the host's memory that two engines cannot both have; prompts are never prefilled in
    chunks, because vLLM then rewinds a seeded request's random generator, which CPU generators
    cannot do: the engine would die.
    """
    kwargs: dict[str, Any] = {
        "dtype": engine.dtype,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "max_num_seqs": engine.max_num_seqs,
        # Neither code nor pickles of a model's folder are executed.
        "trust_remote_code": False,
        "load_format": "safetensors",
        # The replica's load comes from these statistics; vLLM's own loggers are removed.
        "disable_log_stats": False,
        "worker_extension_cls": vllm_worker.EXTENSION,
    }
    if engine.max_model_len is not None:
        kwargs["max_model_len"] = engine.max_model_len
    if engine.max_lora_rank is not None:
        kwargs |= lora_kwargs(engine.max_lora_rank)
    kv_cache_gib = engine.kv_cache_gib
    if not gpu:
        kwargs["enforce_eager"] = True
        kwargs["enable_chunked_prefill"] = False
        kwargs["block_size"] = _CPU_BLOCK_TOKENS
        kwargs["dtype"] = "float32" if engine.dtype == "auto" else engine.dtype
        kv_cache_gib = kv_cache_gib or _CPU_KV_CACHE_GIB
    if kv_cache_gib is not None:
        kwargs["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
    return kwargs


def environment(engine: EngineConfig, gpu: bool) -> dict[str, str]:
    """Return the engine's environment variables.

    OMP threads are counted, not bound: bound engines on one host would all take the same cores, and
    idle threads of an uncounted pool spin.
    """
    env = {"VLLM_NO_USAGE_STATS": "1"}
    if not gpu:
        threads = max(1, int(engine.num_cpus) // engine.tensor_parallel_size)
        env |= {
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_ATTN_SPLIT_KV": "0",
        }
    return env


def questions_per_call(engine: EngineConfig, samples_per_question: int) -> int:
    """Return the questions that travel to an engine in one call.

    A call costs as much as decoding a few dozen tokens of a small model; but it ends with its
    slowest sequence and is lost as a whole, so an engine must have many in flight.
    """
    sequences = min(_SEQUENCES_PER_CALL, engine.max_num_seqs // _CALLS_PER_ENGINE)
    return max(1, sequences // samples_per_question)


def target_calls(engine: EngineConfig, samples_per_question: int) -> int:
    """Return the ongoing calls of one replica above which another one is worth starting."""
    return max(1, math.floor(_full(engine, samples_per_question) * _BUSY_SHARE))


def target_requests(engine: EngineConfig) -> int:
    """Return the same limit for requests of single completions, as clients send them."""
    return max(1, math.floor(engine.max_num_seqs * _BUSY_SHARE))


def max_calls(engine: EngineConfig) -> int:
    """Return the ongoing calls that one replica accepts. It rejects further ones, and Serve retries
    those only after pauses that grow: the engine would run dry meanwhile."""
    return 2 * engine.max_num_seqs


def calls_in_flight(engine: EngineConfig, samples_per_question: int) -> int:
    """Return the calls to have in flight for each replica: more sequences than decode together, so
    that the engine never waits, and never more calls than the replica accepts."""
    queued = math.ceil(_full(engine, samples_per_question) * _QUEUE_SHARE)
    return max(1, min(queued, max_calls(engine)))


def _full(engine: EngineConfig, samples_per_question: int) -> float:
    """Return the calls whose sequences fill the engine."""
    sequences = questions_per_call(engine, samples_per_question) * samples_per_question
    return engine.max_num_seqs / sequences
