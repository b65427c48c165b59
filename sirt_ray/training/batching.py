"""Which examples form optimizer step s, how workers share them, and the tokens of a micro-batch.

Every worker computes the same plan from the same arguments, so nothing is communicated and a
resumed training has the same batches. An optimizer batch is cut into micro-batches of at most
`max_tokens` tokens; all workers get the same number of them, empty ones included, because under
ZeRO-3 a worker that runs fewer forward passes than the others makes them hang.

Preference pairs of one question share its prompt, and often completions. A group holds the prompt
once and each distinct completion once; the losses are arithmetic on the completions' sums::

    pairs   (x, a > c), (x, b > c), (x, a > d)     6 sequences: 6 times x, a and c twice each
    group   x a b c d                              1 sequence

A packed micro-batch is one row without padding. Its segments are the prompts and the completions; a
completion attends to its prompt and itself only, at the positions that it would have after its
prompt by itself. The last token of a completion is predicted but predicts nothing, so it is not in
the row. A padded micro-batch is the same for models whose attention does not support segments: a
row for each distinct completion after its prompt.
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

Ids = tuple[int, ...]
"""Token ids."""

_EMPTY = TrainingExample("", (TokenSequence((0,), (0,)),))
"""The example that a worker without examples runs through the model, to be multiplied by 0."""


@dataclass(frozen=True)
class BatchPlan:
    """The optimizer batches of all epochs.

    Each epoch has a new order of the questions; the examples of a question follow one another, and
    the last, smaller batch is included.

    Example::

        BatchPlan(10 * ["a"], batch_size=4, epochs=2, max_steps=None, seed=0).total_steps
        # 6
    """

    question_ids: Sequence[str]
    """The question of each example."""
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
        """The planned optimizer steps."""
        steps = math.ceil(self.epochs * self.steps_per_epoch)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def batch(self, step: int) -> list[int]:
        """Return the examples of optimizer step `step` (1 .. total_steps)."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        questions = list(self._examples_of)
        random.Random(f"batches/{self.seed}/{epoch}").shuffle(questions)
        order = [number for question in questions for number in self._examples_of[question]]
        return order[position * self.batch_size : (position + 1) * self.batch_size]


@dataclass(frozen=True, slots=True)
class Group:
    """Examples with the same prompt, and what they have in common."""

    prompt_ids: Ids
    completions: tuple[Ids, ...]
    """The distinct completions, in the order of their first appearance."""
    members: tuple[tuple[int, tuple[int, ...]], ...]
    """(number of the example, the index in `completions` of each of its sequences)."""

    @property
    def num_tokens(self) -> int:
        """Tokens in a packed row."""
        return len(self.prompt_ids) + sum(len(completion) - 1 for completion in self.completions)

    @property
    def longest(self) -> int:
        """Tokens in its longest padded row."""
        return len(self.prompt_ids) + max(map(len, self.completions)) - 1


Part = tuple[Group, ...]
"""The groups that go through the model together on one worker; empty for a worker without work,
which takes part in the forward passes of the others."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Which tokens of a packed row attend to which: each segment attends to itself causally, and to
    all of the segment that it continues."""

    lengths: tuple[int, ...]
    """Tokens of each segment; together they cover the row in order."""
    continues: tuple[int | None, ...]
    """The segment that each segment continues: a completion's prompt; None for a prompt."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B rows of T positions, N completion tokens to predict, S sequences of examples."""

    input_ids: Tensor
    """[B, T]"""
    position_ids: Tensor
    """[B, T]"""
    segments: Segments | None
    """None: rows are padded on the right, which no real token attends to by causal attention."""
    predicts: Tensor
    """[N], indices of the B * T positions: where completion token n is predicted."""
    targets: Tensor
    """[N], ids of the completion tokens."""
    completion: Tensor
    """[N], the distinct completion that the token belongs to."""
    num_completions: int
    sequences: Tensor
    """[S], the distinct completion of each sequence of the examples, example after example."""
    numbers: tuple[int, ...]
    """The examples' numbers, in the order of `sequences`; none for a worker without work."""

    def per_sequence(self, completion_values: Tensor) -> Tensor:
        """Return values [num_completions] as [examples, sequences of an example]."""
        return completion_values[self.sequences].view(max(1, len(self.numbers)), -1)

    @property
    def num_tokens(self) -> int:
        """Positions computed, padding included."""
        return self.input_ids.numel()


def grouped(
    examples: Sequence[TrainingExample], numbers: Iterable[int], max_tokens: int
) -> list[Group]:
    """Return the numbered examples, grouped by prompt as far as a group has at most `max_tokens`.

    An example that exceeds it by itself is a separate group.
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
    """Yield the groups of one prompt."""
    indices: dict[Ids, int] = {}
    taken: list[tuple[int, tuple[int, ...]]] = []
    tokens = len(prompt_ids)
    for number in members:
        completions = [sequence.completion_ids for sequence in examples[number].sequences]
        added = sum(len(ids) - 1 for ids in dict.fromkeys(completions) if ids not in indices)
        if taken and tokens + added > max_tokens:
            yield Group(prompt_ids, tuple(indices), tuple(taken))
            indices, taken, tokens = {}, [], len(prompt_ids)
            added = sum(len(ids) - 1 for ids in dict.fromkeys(completions))
        tokens += added
        taken.append((number, tuple(indices.setdefault(ids, len(indices)) for ids in completions)))
    yield Group(prompt_ids, tuple(indices), tuple(taken))


def micro_batches(
    groups: Sequence[Group], packed: bool, max_tokens: int, world_size: int
) -> list[list[Part]]:
    """Return the batch as [turn][rank] -> groups, with every group once and a part for every rank.

    The longest groups come first, so that what is padded together, and what workers do at the same
    time, has similar lengths. A group that exceeds `max_tokens` by itself is a separate part.
    """
    longest_first = sorted(groups, key=lambda group: -group.longest)
    cut = _cut(longest_first, packed, max_tokens)
    while len(cut) % world_size:
        splittable = [part for part in cut if len(part) > 1]
        if not splittable:
            break
        largest = max(splittable, key=lambda part: num_tokens(part, packed))
        index = cut.index(largest)
        middle = (len(largest) + 1) // 2
        cut[index : index + 1] = [largest[:middle], largest[middle:]]
    cut += [()] * (-len(cut) % world_size)
    return [cut[start : start + world_size] for start in range(0, len(cut), world_size)]


def _cut(longest_first: Sequence[Group], packed: bool, max_tokens: int) -> list[Part]:
    """Cut the groups, in order, into parts of at most `max_tokens`."""
    parts: list[Part] = []
    current: Part = ()
    for group in longest_first:
        grown = (*current, group)
        if current and num_tokens(grown, packed) > max_tokens:
            parts.append(current)
            grown = (group,)
        current = grown
    return [*parts, current] if current else parts


def num_tokens(part: Part, packed: bool) -> int:
    """Return the positions in the part's micro-batch, padding included."""
    if packed:
        return sum(group.num_tokens for group in part)
    return sum(len(group.completions) for group in part) * max(group.longest for group in part)


def micro_batch(groups: Sequence[Group], packed: bool, device: torch.device) -> MicroBatch:
    """Return the micro-batch of the groups; without groups, one placeholder token."""
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
        predicts=torch.tensor([row * width + position for row, position in predicts]).to(device),
        targets=torch.tensor(list(itertools.chain.from_iterable(completions))).to(device),
        completion=torch.repeat_interleave(torch.arange(len(completions)), sizes).to(device),
        num_completions=len(completions),
        sequences=torch.tensor(
            [
                start + index
                for start, group in zip(starts, groups, strict=False)
                for _, indices in group.members
                for index in indices
            ]
        ).to(device),
        numbers=numbers,
    )


_Row = tuple[list[int], list[int]]
"""The ids of a row and their positions."""
_Index = tuple[int, int]
"""(row, position in it)."""


def _pack(groups: Sequence[Group]) -> tuple[list[_Row], list[_Index], Segments]:
    """Return one packed row, where each completion token is predicted, and the segments."""
    ids: list[int] = []
    positions: list[int] = []
    predicts: list[_Index] = []
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


def _pad(groups: Sequence[Group]) -> tuple[list[_Row], list[_Index], None]:
    """Return a row for each completion, and where each completion token is predicted."""
    rows: list[_Row] = []
    predicts: list[_Index] = []
    for group in groups:
        after = len(group.prompt_ids)
        for completion in group.completions:
            ids = [*group.prompt_ids, *completion[:-1]]
            predicts += [(len(rows), after - 1 + at) for at in range(len(completion))]
            rows.append((ids, list(range(len(ids)))))
    return rows, predicts, None
