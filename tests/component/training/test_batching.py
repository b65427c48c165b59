"""Every example once, every worker as often, nothing above the budget, the same every time."""

from collections import Counter
from itertools import chain, pairwise
from typing import Any

import pytest

from sirt_ray.training.batching import BatchPlan, Group, micro_batches, num_tokens


def group(number: int, num_prompt: int, *num_completions: int) -> Group:
    """Return a group that its only member identifies."""
    completions = tuple(tuple(range(count)) for count in num_completions)
    return Group(tuple(range(num_prompt)), completions, ((number, (0,)),))


GROUPS = [
    group(number, 3 + 5 * number % 7, *range(3, 4 + 7 * number % 23, 6)) for number in range(17)
]


def plan(**changed: Any) -> BatchPlan:
    settings = {
        "question_ids": list("abcdefghij"),
        "batch_size": 4,
        "epochs": 2,
        "max_steps": None,
        "seed": 3,
    }
    return BatchPlan(**(settings | changed))


def test_an_epoch_has_every_example_once_and_ends_with_the_smaller_batch() -> None:
    batches = [plan().batch(step) for step in (1, 2, 3)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(chain.from_iterable(batches)) == list(range(10))


def test_epochs_have_different_orders_that_the_seed_decides() -> None:
    assert plan().batch(1) == plan().batch(1)
    assert plan().batch(1) != plan().batch(4)
    assert plan().batch(1) != plan(seed=4).batch(1)


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        ({}, 6),
        ({"epochs": 0.5}, 2),
        ({"max_steps": 4}, 4),
        ({"max_steps": 40}, 6),
        ({"batch_size": 64}, 2),
    ],
)
def test_total_steps(changed: dict[str, int], steps: int) -> None:
    assert plan(**changed).total_steps == steps


def test_examples_of_a_question_stay_together() -> None:
    question_ids = list("abcab" + "cdeab")
    batches = [plan(question_ids=question_ids).batch(step) for step in (1, 2, 3)]
    order = [question_ids[number] for number in chain.from_iterable(batches)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sum(one != other for one, other in pairwise(order)) == 4


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("max_tokens", [1, 40, 100, 10_000])
@pytest.mark.parametrize("size", [1, 2, 5, 17])
def test_micro_batches_hold_every_group_once_in_full_turns(
    packed: bool, world_size: int, max_tokens: int, size: int
) -> None:
    turns = micro_batches(GROUPS[:size], packed, max_tokens, world_size)
    parts = [part for turn in turns for part in turn]
    assert all(len(turn) == world_size for turn in turns)
    assert Counter(group for part in parts for group in part) == Counter(GROUPS[:size])
    for part in parts:
        assert len(part) <= 1 or num_tokens(part, packed) <= max_tokens


def test_workers_share_a_batch_that_would_fit_one_of_them() -> None:
    groups = [group(number, 5, 6) for number in range(8)]
    [turn] = micro_batches(groups, True, 10_000, 4)
    assert [len(part) for part in turn] == [2, 2, 2, 2]


def test_workers_without_groups_get_empty_micro_batches() -> None:
    one = group(0, 5, 6)
    assert micro_batches([one], True, 100, 3) == [[(one,), (), ()]]


def test_a_group_above_the_budget_is_a_part_by_itself() -> None:
    long, *short = [group(0, 40, 11), group(1, 2, 3), group(2, 2, 3)]
    assert micro_batches([long, *short], True, 10, 1) == [[(long,)], [tuple(short)]]


def test_packed_tokens_are_those_of_prompts_and_completions_but_their_last() -> None:
    part = (group(0, 5, 4, 3), group(1, 2, 6))
    assert num_tokens(part, packed=True) == 5 + 3 + 2 + 2 + 5
    assert num_tokens(part, packed=False) == 3 * (5 + 4 - 1)
