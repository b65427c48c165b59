"""The reference's log-probabilities: one pass over all pairs, once per round, no second model.

They are computed by the forward pass that the policy trains with, so at step 0 the two differ by
rounding only.
"""

import time
from collections.abc import Sequence

import torch

from sirt_ray.core.encoding import TrainingExample
from sirt_ray.training.batching import micro_batches
from sirt_ray.training.data import shapes
from sirt_ray.training.engine import Engine
from sirt_ray.training.fit import Settings
from sirt_ray.training.forward import EMPTY, completion_logps
from sirt_ray.training.workfolder import WorkFolder

PairLogps = tuple[float, float]
"""(chosen, rejected), in nats."""


def reference_logps(
    engine: Engine, examples: Sequence[TrainingExample], settings: Settings, work: WorkFolder
) -> list[PairLogps | None]:
    """One entry for each pair, in order; None for a pair that is longer than `max_length`."""
    sizes = shapes(examples)
    used = [n for n, size in enumerate(sizes) if size.length <= settings.config.max_length]
    turns = micro_batches(
        used, sizes, settings.resources.max_tokens_per_micro_batch, engine.world_size
    )
    found = torch.zeros(len(examples), 2, dtype=torch.float64)
    began = time.monotonic()
    tokens = 0
    engine.train(False)
    with torch.no_grad():
        for number, turn in enumerate(turns, start=1):
            mine = list(turn[engine.rank])
            sequences = [s for index in mine for s in examples[index].sequences] or EMPTY
            logps = completion_logps(engine.forward, sequences, engine.device)
            if mine:
                found[mine] = logps.double().cpu().view(-1, 2)
            tokens += sum(examples[index].num_tokens for part in turn for index in part)
            if engine.rank == 0:
                speed = tokens / (time.monotonic() - began)
                line = {"step": number, "total_steps": len(turns), "tokens_per_second": speed}
                work.append(line)
    # Every pair was computed by one worker and is 0 on the others: the sum is exact.
    whole = engine.total(found.flatten().tolist())
    within = frozenset(used)
    return [(whole[2 * n], whole[2 * n + 1]) if n in within else None for n in range(len(examples))]
