"""Every example once, every worker as often, nothing above the budget, the same every time."""

from collections import Counter
from itertools import chain

import pytest

from sirt_ray.training.batching import BatchPlan, Shape, micro_batches

SHAPES = [Shape(rows=1 + index % 2, length=5 + 7 * index % 23) for index in range(17)]


def plan(**changed: float | int | None) -> BatchPlan:
    settings = {"num_examples": 10, "batch_size": 4, "epochs": 2, "max_steps": None, "seed": 3}
    return BatchPlan(**(settings | changed))  # type: ignore[arg-type]


def test_an_epoch_has_every_example_once_and_ends_with_the_smaller_batch() -> None:
    batches = [plan().batch(step) for step in (1, 2, 3)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(chain.from_iterable(batches)) == list(range(10))


def test_epochs_have_orders_of_their_own_that_the_seed_decides() -> None:
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


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("max_tokens", [1, 40, 100, 10_000])
@pytest.mark.parametrize("size", [1, 2, 5, 17])
def test_micro_batches_hold_every_example_once_in_full_turns(
    world_size: int, max_tokens: int, size: int
) -> None:
    turns = micro_batches(range(size), SHAPES, max_tokens, world_size)
    parts = [part for turn in turns for part in turn]
    assert all(len(turn) == world_size for turn in turns)
    assert Counter(index for part in parts for index in part) == Counter(range(size))
    for part in parts:
        if len(part) > 1:
            rows = sum(SHAPES[index].rows for index in part)
            assert rows * max(SHAPES[index].length for index in part) <= max_tokens


def test_workers_share_a_batch_that_would_fit_one_of_them() -> None:
    [turn] = micro_batches(range(8), [Shape(1, 10)] * 8, 10_000, 4)
    assert [len(part) for part in turn] == [2, 2, 2, 2]


def test_workers_without_examples_get_empty_micro_batches() -> None:
    assert micro_batches([0], [Shape(1, 10)], 100, 3) == [[(0,), (), ()]]


def test_an_example_above_the_budget_goes_alone() -> None:
    shapes = [Shape(1, 50), Shape(1, 4), Shape(1, 4)]
    assert micro_batches([0, 1, 2], shapes, 10, 1) == [[(0,)], [(1, 2)]]
