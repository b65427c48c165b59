"""Which examples form optimizer step s, and how workers share them. Pure functions of numbers.

Every worker computes the same plan from the same arguments, so nothing is communicated and a
resumed training meets the same batches. An optimizer batch is cut in micro-batches that each fit
`max_tokens` padded tokens; all workers get the same number of them, empty ones included, because
under ZeRO-3 a worker that runs fewer forward passes than the others hangs them.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

MicroBatch = tuple[int, ...]
"""Indices of examples; empty where a worker only keeps the others company."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Optimizer batches over epochs: each epoch in a new order, the last smaller batch included.

    Example::

        BatchPlan(num_examples=10, batch_size=4, epochs=2, max_steps=None, seed=0).total_steps  # 6
    """

    num_examples: int
    batch_size: int
    epochs: float
    max_steps: int | None
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_examples / self.batch_size)

    @property
    def total_steps(self) -> int:
        steps = math.ceil(self.epochs * self.steps_per_epoch)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def batch(self, step: int) -> list[int]:
        """The examples of optimizer step `step` (1 .. total_steps)."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        order = list(range(self.num_examples))
        random.Random(f"batches/{self.seed}/{epoch}").shuffle(order)
        return order[position * self.batch_size : (position + 1) * self.batch_size]


@dataclass(frozen=True, slots=True)
class Shape:
    """The room one example takes in a padded batch."""

    rows: int
    """Sequences: 1 for a demonstration, 2 for a pair."""
    length: int
    """Tokens of its longest sequence."""


def micro_batches(
    batch: Sequence[int], shapes: Sequence[Shape], max_tokens: int, world_size: int
) -> list[list[MicroBatch]]:
    """The batch as [turn][rank] -> examples; every example once, every turn of full width.

    Longest first, so that the examples of a micro-batch, and the micro-batches of a turn, are of
    like length. One example that is above `max_tokens` by itself goes alone.
    """
    longest_first = sorted(batch, key=lambda index: (-shapes[index].length, index))
    cut = _cut(longest_first, shapes, max_tokens)
    while len(cut) % world_size:
        splittable = [part for part in cut if len(part) > 1]
        if not splittable:
            break
        largest = max(splittable, key=lambda part: _padded_tokens(part, shapes))
        at = cut.index(largest)
        middle = (len(largest) + 1) // 2
        cut[at : at + 1] = [largest[:middle], largest[middle:]]
    cut += [()] * (-len(cut) % world_size)
    return [cut[start : start + world_size] for start in range(0, len(cut), world_size)]


def _cut(
    longest_first: Sequence[int], shapes: Sequence[Shape], max_tokens: int
) -> list[MicroBatch]:
    parts: list[MicroBatch] = []
    current: MicroBatch = ()
    for index in longest_first:
        grown = (*current, index)
        if current and _padded_tokens(grown, shapes) > max_tokens:
            parts.append(current)
            grown = (index,)
        current = grown
    return [*parts, current] if current else parts


def _padded_tokens(part: MicroBatch, shapes: Sequence[Shape]) -> int:
    return sum(shapes[index].rows for index in part) * max(shapes[index].length for index in part)
