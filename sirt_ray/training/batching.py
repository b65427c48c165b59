"""Which examples form optimizer step s, and how workers share them. Pure functions of numbers.

Every worker computes the same plan from the same arguments, so nothing is communicated and a
resumed training meets the same batches. An optimizer batch is cut in micro-batches of at most
`max_tokens` tokens; all workers get the same number of them, empty ones included, because under
ZeRO-3 a worker that runs fewer forward passes than the others hangs them.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sirt_ray.training.packing import Group

Part = tuple[Group, ...]
"""Of a batch: what goes through the model together; empty where a worker only keeps the others
company."""


@dataclass(frozen=True)
class BatchPlan:
    """Optimizer batches over epochs: each epoch in a new order of the questions, the examples of a
    question side by side, the last smaller batch included.

    Example::

        BatchPlan(10 * ["a"], batch_size=4, epochs=2, max_steps=None, seed=0).total_steps
        # 6
    """

    question_ids: Sequence[str]
    """Of each example."""
    batch_size: int
    epochs: float
    max_steps: int | None
    seed: int

    @cached_property
    def _examples_of(self) -> dict[str, list[int]]:
        examples: dict[str, list[int]] = {}
        for number, question_id in enumerate(self.question_ids):
            examples.setdefault(question_id, []).append(number)
        return examples

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.question_ids) / self.batch_size)

    @property
    def total_steps(self) -> int:
        steps = math.ceil(self.epochs * self.steps_per_epoch)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def batch(self, step: int) -> list[int]:
        """The examples of optimizer step `step` (1 .. total_steps)."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        questions = list(self._examples_of)
        random.Random(f"batches/{self.seed}/{epoch}").shuffle(questions)
        order = [number for question in questions for number in self._examples_of[question]]
        return order[position * self.batch_size : (position + 1) * self.batch_size]


def micro_batches(
    groups: Sequence[Group], packed: bool, max_tokens: int, world_size: int
) -> list[list[Part]]:
    """The batch as [turn][rank] -> groups; every group once, every turn of full width.

    Longest first, so that what is padded together, and what workers do at the same time, is of
    like length. One group that is above `max_tokens` by itself goes alone.
    """
    longest_first = sorted(groups, key=lambda group: -group.longest)
    cut = _cut(longest_first, packed, max_tokens)
    while len(cut) % world_size:
        splittable = [part for part in cut if len(part) > 1]
        if not splittable:
            break
        largest = max(splittable, key=lambda part: num_tokens(part, packed))
        at = cut.index(largest)
        middle = (len(largest) + 1) // 2
        cut[at : at + 1] = [largest[:middle], largest[middle:]]
    cut += [()] * (-len(cut) % world_size)
    return [cut[start : start + world_size] for start in range(0, len(cut), world_size)]


def num_tokens(part: Part, packed: bool) -> int:
    """Places in the part's micro-batch, padding included."""
    if packed:
        return sum(group.num_tokens for group in part)
    return sum(len(group.completions) for group in part) * max(group.longest for group in part)


def _cut(longest_first: Sequence[Group], packed: bool, max_tokens: int) -> list[Part]:
    parts: list[Part] = []
    current: Part = ()
    for group in longest_first:
        grown = (*current, group)
        if current and num_tokens(grown, packed) > max_tokens:
            parts.append(current)
            grown = (group,)
        current = grown
    return [*parts, current] if current else parts
