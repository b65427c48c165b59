"""What both trainers of the benchmark are given, and how they are measured."""

import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import psutil

from sirt_ray.core.encoding import TokenSequence, TrainingExample

T = TypeVar("T")

MAX_LENGTH = 1024
"""Tokens in a packed row of TRL's."""
ROW_HOLDS = 5
"""About as many of our examples."""
EOS = 2
_CUT = 4096
"""Tokens: where batches are cut does not change their operations."""
_PROMPT = (60, 140)
_COMPLETION = (40, 160)
_PAIR_PATTERN = tuple((i % 4, 4 + (i + i // 4) % 4) for i in range(10))
"""Ten different ones of the sixteen that 4 right and 4 wrong completions make."""


@dataclass(frozen=True)
class Setting:
    """Where it runs, and how large the model is."""

    device: str
    dtype: Literal["float32", "bfloat16"]
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    ours_at_once: int
    """Tokens in a micro-batch."""
    trl_at_once: int
    """Pairs in a micro-batch."""
    batch: int
    """Pairs, or completions, in one optimizer step."""
    trl_weights: Literal["float32", "bfloat16"] = "float32"
    """TRL loads weights in float32, and computes in bfloat16 where it trains in it."""

    @property
    def trl_rows_at_once(self) -> int:
        """Packed rows in a micro-batch."""
        return min(self.ours_at_once // MAX_LENGTH, self.batch // ROW_HOLDS)


CPU = Setting("cpu", "float32", 4096, 384, 8, 6, ours_at_once=1024, trl_at_once=4, batch=60)
"""17 million parameters."""
GPU = Setting(
    "cuda", "bfloat16", 32768, 2048, 20, 16, ours_at_once=16384, trl_at_once=15, batch=240
)
"""1.1 billion parameters."""


@dataclass(frozen=True)
class Workload:
    completions: int
    """Of a question."""
    pairs: int
    """Of a question; 0: its completions are imitated."""

    def examples(self, units: int, vocabulary: int) -> list[TrainingExample]:
        """`units` pairs or completions; the same ones every time."""
        draw = random.Random(0)

        def ids(low: int, high: int) -> tuple[int, ...]:
            return tuple(draw.randrange(3, vocabulary) for _ in range(draw.randint(low, high)))

        def answer() -> tuple[int, ...]:
            return (*ids(*_COMPLETION), EOS)

        made: list[TrainingExample] = []
        for question in range(units // max(1, self.pairs)):
            prompt = ids(*_PROMPT)
            completions = [answer() for _ in range(self.completions)]
            picks: list[tuple[int, ...]] = {0: [(0,)], 1: [(0, 1)]}.get(
                self.pairs, list(_PAIR_PATTERN)
            )
            made += [
                TrainingExample(
                    str(question), tuple(TokenSequence(prompt, completions[n]) for n in pick)
                )
                for pick in picks
            ]
        return made


@dataclass(frozen=True)
class Measured:
    units: int
    seconds: float
    mib: float
    """Memory at its highest: of a GPU all that torch has allocated, weights included; of a process
    what is above that with the loaded model."""
    flops: float
    """Of the tokens that went through the model, without padding."""


def model(setting: Setting) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    config = LlamaConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.hidden,
        # A GPU's matrix units want rows of whole 16 bytes, and are several times slower without.
        intermediate_size=-(8 * setting.hidden // -3 // 128) * 128,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    with torch.device(setting.device):
        made: Any = LlamaForCausalLM(config)
    return made.to(getattr(torch, setting.dtype))


def matmul_peak(setting: Setting) -> float:
    """Floating-point operations a second of the best of several large products."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    size, in_a_row = (8192, 20) if setting.device == "cuda" else (2048, 1)
    one, other = torch.randn(2, size, size, device=setting.device).to(getattr(torch, setting.dtype))
    product = torch.empty_like(one)
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        for _ in range(in_a_row):
            torch.mm(one, other, out=product)
        product[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 * in_a_row / best


def warm_up(made: Any, setting: Setting) -> None:
    """Load a GPU's kernels, which a training of hours does not notice and one of seconds does."""
    import torch

    if setting.device != "cuda":
        return
    with torch.autocast("cuda", torch.bfloat16, enabled=setting.dtype == "bfloat16"):
        made(torch.zeros(1, MAX_LENGTH, dtype=torch.long, device="cuda")).logits.sum().backward()
    made.zero_grad()


def apart(function: Callable[..., T], *arguments: object) -> T:
    """In a process of its own, whose memory is then nobody else's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def memory(setting: Setting) -> Iterator[Callable[[], float]]:
    """MiB of memory in the block at its highest: see `Measured.mib`."""
    import torch

    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield lambda: torch.cuda.max_memory_allocated() / 2**20
    else:
        before = psutil.Process().memory_info().rss
        yield lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / 2**20


def flops(made: Any, examples: list[TrainingExample], at_once: int, shared: bool) -> float:
    """Of the examples' training, and of the reference's pass where there is one, in optimizer
    batches of `at_once`. `shared`: what examples of a question have in common goes through the
    model once."""
    from sirt_ray.training.batching import grouped, micro_batches
    from sirt_ray.training.metrics import count_forward, model_size

    size = model_size(made)
    assert size is not None
    if not shared:
        examples = [replace(e, question_id=str(number)) for number, e in enumerate(examples)]
    total = 0.0
    for first in range(0, len(examples), at_once):
        batch = range(first, min(first + at_once, len(examples)))
        groups = grouped(examples, batch, _CUT)
        done = count_forward(micro_batches(groups, shared, _CUT, 1), shared)
        total += size.flops(done)
    return total * (4 / 3 if len(examples[0].sequences) > 1 else 1)
