"""Log-probabilities of many examples without gradient, shared by the workers.

The reference's are computed once per round, in one pass over all pairs, so that no second model is
needed in the training. The pass is the forward pass that the policy trains with: where the two have
the same weights, they differ only by rounding at step 0.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sirt_ray.core.encoding import TrainingExample
from sirt_ray.training.batching import grouped, micro_batch, micro_batches, num_tokens
from sirt_ray.training.data import ReferenceLogps
from sirt_ray.training.engine import Engine
from sirt_ray.training.workdir import WorkDir

Score = Callable[[Sequence[TrainingExample]], Tensor]
"""Examples -> the log-probability of each one's completions, [examples, sequences], in float64 and
without gradient, the same on every worker. All workers call it together."""


def score(
    engine: Engine,
    examples: Sequence[TrainingExample],
    max_tokens: int,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> Tensor:
    """Compute a `Score` by the engine's model as it is now, on its device.

    Every example has the same number of sequences; micro-batches have at most `max_tokens` tokens.
    `on_progress` is called with the number of micro-batches done, of all micro-batches, and of the
    tokens in those done.
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
            if on_progress is not None:
                on_progress(number, len(turns), tokens)
    # Every example was computed by one worker and is 0 on the others: the sum is exact.
    total = engine.sum_over_workers(found.flatten().tolist())
    return torch.tensor(total, dtype=torch.float64).view(shape)


def reference_logps(
    engine: Engine,
    examples: Sequence[TrainingExample],
    max_length: int,
    max_tokens: int,
    work: WorkDir | None = None,
) -> list[ReferenceLogps | None]:
    """Return the log-probabilities of each pair's completions, in order; None for a pair with a
    sequence of more than `max_length` tokens.

    Micro-batches have at most `max_tokens` tokens. If `work` is given, rank 0 appends the progress
    to its lines.
    """
    started = time.monotonic()

    def append_progress(done: int, total: int, tokens: int) -> None:
        if work is not None and engine.rank == 0:
            speed = tokens / (time.monotonic() - started)
            work.append({"step": done, "total_steps": total, "tokens_per_second": speed})

    used = [n for n, example in enumerate(examples) if example.longest <= max_length]
    logps = score(engine, [examples[n] for n in used], max_tokens, append_progress).tolist()
    of_used = {n: tuple(row) for n, row in zip(used, logps, strict=True)}
    return [of_used.get(number) for number in range(len(examples))]
