"""Log-probabilities of many examples without gradient, shared by the workers."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sirt_ray.core.encoding import TrainingExample
from sirt_ray.training.batching import grouped, micro_batch, micro_batches, num_tokens
from sirt_ray.training.data import ReferenceLogps
from sirt_ray.training.engine import Engine
from sirt_ray.training.workdir import WorkDir

if TYPE_CHECKING:
    from sirt_ray.training.fit import Settings

Score = Callable[[Sequence[TrainingExample]], Tensor]
"""Examples -> the log-probability of each one's completions, [examples, sequences], in float64 and
without gradient, the same on every worker. All workers call it together."""


def score(
    engine: Engine,
    examples: Sequence[TrainingExample],
    max_tokens: int,
    tell: Callable[[int, int, int], None] | None = None,
) -> Tensor:
    """`Score` by the engine's model as it is now, on its device. Every example has the same number
    of sequences; micro-batches are of at most `max_tokens` tokens.

    `tell` hears of the micro-batches done, of their number, and of the tokens in those done.
    """
    packed = engine.capabilities.packed
    groups = grouped(examples, range(len(examples)), max_tokens)
    turns = micro_batches(groups, packed, max_tokens, engine.world_size)
    shape = len(examples), max((len(example.sequences) for example in examples), default=0)
    found = torch.zeros(shape, dtype=torch.float64, device=engine.device)
    tokens = 0
    engine.train(False)
    with torch.no_grad():
        for number, turn in enumerate(turns, start=1):
            batch = micro_batch(turn[engine.rank], packed, engine.device)
            logps = engine.forward(batch)
            if batch.numbers:
                found[list(batch.numbers)] = batch.per_sequence(logps).double()
            tokens += sum(num_tokens(part, packed) for part in turn if part)
            if tell is not None:
                tell(number, len(turns), tokens)
    # Every example was computed by one worker and is 0 on the others: the sum is exact.
    return torch.tensor(engine.total(found.flatten().tolist()), dtype=torch.float64).view(shape)


# FOLDED training.reference: The reference's log-probabilities: one pass over all pairs, once per round, no second model.
#
# They are computed by the forward pass that the policy trains with, so where the two have the same
# weights they differ by rounding only at step 0.


def reference_logps(
    engine: Engine,
    examples: Sequence[TrainingExample],
    settings: "Settings",
    work: WorkDir | None = None,
) -> list[ReferenceLogps | None]:
    """One entry for each pair, in order; None for a pair that is longer than `max_length`.

    How far it is stands in the lines of `work`, where there is one.
    """
    began = time.monotonic()

    def tell(done: int, total: int, tokens: int) -> None:
        if work is not None and engine.rank == 0:
            speed = tokens / (time.monotonic() - began)
            work.append({"step": done, "total_steps": total, "tokens_per_second": speed})

    max_length = settings.config.max_length
    used = [n for n, example in enumerate(examples) if example.longest <= max_length]
    limit = settings.resources.max_tokens_per_micro_batch
    logps = score(engine, [examples[n] for n in used], limit, tell).tolist()
    of_used = {n: tuple(row) for n, row in zip(used, logps, strict=True)}
    return [of_used.get(number) for number in range(len(examples))]
