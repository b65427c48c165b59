"""Which examples form optimizer step s, and how workers share them. Pure functions of numbers.

Every worker computes the same plan from the same arguments, so nothing is communicated and a
resumed training meets the same batches. An optimizer batch is cut in micro-batches of at most
`max_tokens` tokens; all workers get the same number of them, empty ones included, because under
ZeRO-3 a worker that runs fewer forward passes than the others hangs them.
"""

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sirt_ray.core.encoding import TokenSequence, TrainingExample

# FOLDED training.packing: Training examples -> one micro-batch of tokens, everything that is shared in it only once.
#
# Preference pairs of one question share its prompt, and often completions. A group holds the prompt
# once and each distinct completion once; the losses are arithmetic on the completions' sums::
#
#     pairs   (x, a > c), (x, b > c), (x, a > d)     6 sequences: 6 times x, a and c twice each
#     group   x a b c d                              1 sequence
#
# A packed micro-batch is one row without padding. Its segments are the prompts and the completions;
# a completion attends to its prompt and itself only, at the positions that it would have after its
# prompt alone. The last token of a completion is predicted but predicts nothing, so it is not in the
# row. A padded micro-batch is the same for models whose attention cannot be told so: a row for each
# distinct completion behind its prompt.

_EMPTY = TrainingExample("", (TokenSequence((0,), (0,)),))
"""What a worker without examples runs through the model, to be multiplied by 0."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Examples with the same prompt, and what they have in common."""

    prompt_ids: Ids
    completions: tuple[Ids, ...]
    """Distinct, in the order of their first appearance."""
    members: tuple[tuple[int, tuple[int, ...]], ...]
    """(number of the example, the place in `completions` of each of its sequences)."""

    @property
    def num_tokens(self) -> int:
        """In a packed row."""
        return len(self.prompt_ids) + sum(len(completion) - 1 for completion in self.completions)

    @property
    def longest(self) -> int:
        """Tokens in its longest padded row."""
        return len(self.prompt_ids) + max(map(len, self.completions)) - 1


def grouped(
    examples: Sequence[TrainingExample], numbers: Iterable[int], max_tokens: int
) -> list[Group]:
    """The numbered examples, those of one prompt together unless they are above `max_tokens`.

    One example that is above it by itself is a group of its own.
    """
    by_prompt: dict[Ids, list[int]] = {}
    for number in numbers:
        by_prompt.setdefault(examples[number].sequences[0].prompt_ids, []).append(number)
    groups: list[Group] = []
    for prompt_ids, members in by_prompt.items():
        groups += _split(prompt_ids, members, examples, max_tokens)
    return groups


def _split(
    prompt_ids: Ids, members: Sequence[int], examples: Sequence[TrainingExample], max_tokens: int
) -> Iterable[Group]:
    places: dict[Ids, int] = {}
    taken: list[tuple[int, tuple[int, ...]]] = []
    tokens = len(prompt_ids)
    for number in members:
        completions = [sequence.completion_ids for sequence in examples[number].sequences]
        added = sum(len(ids) - 1 for ids in dict.fromkeys(completions) if ids not in places)
        if taken and tokens + added > max_tokens:
            yield Group(prompt_ids, tuple(places), tuple(taken))
            places, taken, tokens = {}, [], len(prompt_ids)
            added = sum(len(ids) - 1 for ids in dict.fromkeys(completions))
        tokens += added
        taken.append((number, tuple(places.setdefault(ids, len(places)) for ids in completions)))
    yield Group(prompt_ids, tuple(places), tuple(taken))


@dataclass(frozen=True, slots=True)
class Segments:
    """Which tokens of a packed row see which: each segment sees itself causally, and all of the
    segment that it continues."""

    lengths: tuple[int, ...]
    """They cover the row in order."""
    continues: tuple[int | None, ...]
    """The segment before it in meaning: a completion's prompt; None for a prompt."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B rows of T tokens, N completion tokens to predict, S sequences of examples."""

    input_ids: Tensor
    """[B, T]"""
    position_ids: Tensor
    """[B, T]"""
    segments: Segments | None
    """None: rows are padded on the right, where causal attention never looks from a real token."""
    predicts: Tensor
    """[N], into the B * T places: where completion token n is predicted."""
    targets: Tensor
    """[N], ids of the completion tokens."""
    completion: Tensor
    """[N], which distinct completion the token belongs to."""
    num_completions: int
    sequences: Tensor
    """[S], which distinct completion each sequence of the examples is, example after example."""
    numbers: tuple[int, ...]
    """The examples' numbers, in the order of `sequences`; none for a worker without work."""

    def per_sequence(self, completion_values: Tensor) -> Tensor:
        """[num_completions] -> [examples, sequences of an example]."""
        return completion_values[self.sequences].view(max(1, len(self.numbers)), -1)

    @property
    def num_tokens(self) -> int:
        """Places computed, padding included."""
        return self.input_ids.numel()


def micro_batch(groups: Sequence[Group], packed: bool, device: torch.device) -> MicroBatch:
    """The groups side by side; no groups give one token that stands for nothing."""
    if not groups:
        (empty,) = grouped([_EMPTY], [0], 1)
        groups, numbers = [empty], ()
    else:
        numbers = tuple(number for group in groups for number, _ in group.members)
    rows, predicts, segments = _pack(groups) if packed else _pad(groups)
    completions = [ids for group in groups for ids in group.completions]
    width = max(len(ids) for ids, _ in rows)
    sizes = torch.tensor([len(ids) for ids in completions])
    starts = itertools.accumulate((len(group.completions) for group in groups), initial=0)

    def filled(values: Iterable[list[int]]) -> Tensor:
        return torch.tensor([row + [0] * (width - len(row)) for row in values]).to(device)

    return MicroBatch(
        input_ids=filled(ids for ids, _ in rows),
        position_ids=filled(positions for _, positions in rows),
        segments=segments,
        predicts=torch.tensor([row * width + at for row, at in predicts]).to(device),
        targets=torch.tensor(list(itertools.chain.from_iterable(completions))).to(device),
        completion=torch.repeat_interleave(torch.arange(len(completions)), sizes).to(device),
        num_completions=len(completions),
        sequences=torch.tensor(
            [
                start + place
                for start, group in zip(starts, groups, strict=False)
                for _, places in group.members
                for place in places
            ]
        ).to(device),
        numbers=numbers,
    )


_Row = tuple[list[int], list[int]]
"""Ids and their positions."""
_Place = tuple[int, int]
"""(row, place in it)."""


def _pack(groups: Sequence[Group]) -> tuple[list[_Row], list[_Place], Segments]:
    ids: list[int] = []
    positions: list[int] = []
    predicts: list[_Place] = []
    lengths: list[int] = []
    continues: list[int | None] = []
    for group in groups:
        prompt, after = len(lengths), len(group.prompt_ids)
        ids += group.prompt_ids
        positions += range(after)
        lengths.append(after)
        continues.append(None)
        last_of_prompt = len(ids) - 1
        for completion in group.completions:
            predicts.append((0, last_of_prompt))
            predicts += [(0, len(ids) + at) for at in range(len(completion) - 1)]
            if len(completion) > 1:
                ids += completion[:-1]
                positions += range(after, after + len(completion) - 1)
                lengths.append(len(completion) - 1)
                continues.append(prompt)
    return [(ids, positions)], predicts, Segments(tuple(lengths), tuple(continues))


def _pad(groups: Sequence[Group]) -> tuple[list[_Row], list[_Place], None]:
    rows: list[_Row] = []
    predicts: list[_Place] = []
    for group in groups:
        after = len(group.prompt_ids)
        for completion in group.completions:
            ids = [*group.prompt_ids, *completion[:-1]]
            predicts += [(len(rows), after - 1 + at) for at in range(len(completion))]
            rows.append((ids, list(range(len(ids)))))
    return rows, predicts, None


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
