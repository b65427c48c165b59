"""Which rows of a benchmark a run takes."""

from collections import Counter

import pytest

from sirt_ray.benchmarks.selection import (
    contaminated,
    quotas,
    select_test,
    select_training,
    text_key,
)
from sirt_ray.errors import DataError
from sirt_ray.types import Question


def pool(count: int, letters: str = "ABCD") -> list[Question]:
    return [
        Question(f"b/train/{i}", "b", f"Question {i}?", tuple(letters), letters[i % len(letters)])
        for i in range(count)
    ]


def test_paper_protocol_is_balanced_and_disjoint() -> None:
    given = pool(5000)
    chosen = select_training("b", given, 4000, 200, True, seed=1)
    assert Counter(q.reference for q in chosen.train) == dict.fromkeys("ABCD", 1000)
    assert len(chosen.validation) == 200
    assert not {q.id for q in chosen.train} & {q.id for q in chosen.validation}
    order = [given.index(q) for q in chosen.train[:50]]
    assert order == sorted(order)
    counts = chosen.counts
    dropped = sum(number for name, number in counts.items() if name.startswith("dropped_"))
    assert counts["rows"] == counts["train"] + counts["validation"] + dropped == 5000


def test_selection_depends_on_the_seed_only() -> None:
    first, again = (select_training("b", pool(100), 40, 10, True, seed=1) for _ in range(2))
    other = select_training("b", pool(100), 40, 10, True, seed=2)
    assert first == again
    assert first.train != other.train
    assert select_test("b", pool(100), 10, 1) == select_test("b", pool(100), 10, 1)
    assert select_test("b", pool(100), 10, 1) != select_test("b", pool(100), 10, 2)


def test_quotas_share_out_the_rest() -> None:
    assert quotas("ABC", 4000) == {"A": 1334, "B": 1333, "C": 1333}
    assert quotas("AB", 4000) == {"A": 2000, "B": 2000}
    assert quotas("ABCDE", 4000) == dict.fromkeys("ABCDE", 800)


def test_duplicates_and_shared_texts_are_dropped_and_counted() -> None:
    same = Question("b/train/100", "b", " question  1? ", ("D", "C", "B", "A"), "B")
    other_options = Question("b/train/101", "b", "Question 2?", ("E", "F"), "A")
    chosen = select_training("b", [*pool(8), same, other_options], None, 7, False, seed=0)
    assert chosen.counts["dropped_duplicate"] == 1
    texts = {text_key(q) for q in chosen.validation}
    assert not texts & {text_key(q) for q in chosen.train}
    assert len(texts) == 7
    held_out = "question 2?" in texts
    assert chosen.counts["dropped_same_text_as_validation"] == int(held_out)


def test_too_few_rows_shrink_the_training_questions() -> None:
    chosen = select_training("b", pool(30), 40, 10, False, seed=0)
    assert (len(chosen.train), len(chosen.validation)) == (20, 10)
    assert chosen.counts["missing"] == 20
    with pytest.raises(DataError, match=r"b, split train: 10 distinct .* nothing is\s+left"):
        select_training("b", pool(10), 40, 10, False, seed=0)


def test_rare_answer_gives_all_it_has() -> None:
    given = [*pool(40, "AB"), Question("b/train/99", "b", "Rare?", ("A", "B", "C"), "C")]
    chosen = select_training("b", given, 30, 0, True, seed=0)
    assert Counter(q.reference for q in chosen.train) == {"A": 10, "B": 10, "C": 1}
    assert chosen.counts["missing"] == 9


def test_contamination_is_counted_by_text() -> None:
    assert contaminated(pool(5), {"question 1?", "question 9?"}) == 1


def test_whole_test_split_by_default() -> None:
    assert select_test("b", pool(5), None, 0) == pool(5)
    assert len(select_test("b", pool(5), 3, 0)) == 3
