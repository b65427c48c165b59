"""The reference's log-probabilities: one pass over all pairs, once per round, no second model.

They are computed by the forward pass that the policy trains with, so where the two have the same
weights they differ by rounding only at step 0.
"""

import time
from collections.abc import Sequence

from sirt_ray.core.encoding import TrainingExample
from sirt_ray.training.data import ReferenceLogps
from sirt_ray.training.engine import Engine
from sirt_ray.training.fit import Settings
from sirt_ray.training.scoring import score
from sirt_ray.training.workdir import WorkFolder


def reference_logps(
    engine: Engine,
    examples: Sequence[TrainingExample],
    settings: Settings,
    work: WorkFolder | None = None,
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
