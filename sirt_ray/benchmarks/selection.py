"""Selection of the questions that are trained on, held out and reported on.

It is deterministic in (rows, settings, seed), and keeps the order of the rows. Each benchmark is
sampled separately, so adding one to a job does not change what another one contributes.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sirt_ray.errors import DataError
from sirt_ray.types import Question


@dataclass(frozen=True, slots=True)
class Selection:
    """The training rows of one benchmark, split."""

    train: list[Question]
    validation: list[Question]
    counts: dict[str, int]
    """Outcomes of the training rows; `rows` is the sum of `train`, `validation` and everything that
    starts with `dropped_`."""


def text_key(question: Question) -> str:
    """Return the key that questions with the same text share, whatever their options are."""
    return normalised(question.text)


def normalised(text: str) -> str:
    """Return a text in one case, with single spaces."""
    return " ".join(text.casefold().split())


def select_training(
    name: str,
    questions: Sequence[Question],
    num_train: int | None,
    num_validation: int,
    balanced: bool,
    seed: int,
) -> Selection:
    """Split the training rows of one benchmark.

    Rows that repeat the text and options of another are dropped. `num_validation` are held out
    first, each with a different text; a training question with the same text as a held-out one is
    dropped. `num_train` of the rest are chosen (None: all), equally many for each answer where
    `balanced`. With too few rows there are fewer training questions, counted as
    `counts["missing"]`. Raises DataError if there are none at all.
    """
    distinct = _without_duplicates(questions)
    validation = _held_out(distinct, num_validation, random.Random(f"{seed}/{name}/validation"))
    held_out = {text_key(question) for question in validation}
    rest = [question for question in distinct if text_key(question) not in held_out]
    if not rest:
        raise DataError(
            f"{name}, split train: {len(distinct)} distinct training questions, of which"
            f" {len(validation)} are held out (data.num_validation is {num_validation}): nothing is"
            " left to train on. Lower data.num_validation or give more rows"
        )
    rng = random.Random(f"{seed}/{name}/train")
    train = _choose(rest, len(rest) if num_train is None else num_train, balanced, rng)
    counts = {
        "rows": len(questions),
        "train": len(train),
        "validation": len(validation),
        "dropped_duplicate": len(questions) - len(distinct),
        "dropped_same_text_as_validation": len(distinct) - len(validation) - len(rest),
        "dropped_not_chosen": len(rest) - len(train),
        "missing": max(0, (num_train or 0) - len(train)),
        "missing_validation": num_validation - len(validation),
    }
    return Selection(train, validation, counts)


def select_test(
    name: str, questions: Sequence[Question], num_test: int | None, seed: int
) -> list[Question]:
    """Return at most `num_test` questions, in order. Duplicates stay: a published split is used as
    it is."""
    if num_test is None or num_test >= len(questions):
        return list(questions)
    chosen = random.Random(f"{seed}/{name}/test").sample(range(len(questions)), num_test)
    return [questions[index] for index in sorted(chosen)]


def contaminated(train: Sequence[Question], test_texts: Collection[str]) -> int:
    """Return how many training questions have the text of a test question. They are counted and not
    dropped: the paper trains on the published splits as they are, as do the works it compares
    with."""
    return sum(text_key(question) in test_texts for question in train)


def _without_duplicates(questions: Sequence[Question]) -> list[Question]:
    """Return the first of all questions with the same text and the same options in any order."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    kept: list[Question] = []
    for question in questions:
        key = (text_key(question), tuple(sorted(question.choices)))
        if key not in seen:
            seen.add(key)
            kept.append(question)
    return kept


def _held_out(questions: Sequence[Question], count: int, rng: random.Random) -> list[Question]:
    first_of_text: dict[str, int] = {}
    for index, question in enumerate(questions):
        first_of_text.setdefault(text_key(question), index)
    candidates = list(first_of_text.values())
    chosen = rng.sample(candidates, min(count, len(candidates)))
    return [questions[index] for index in sorted(chosen)]


def _choose(
    questions: Sequence[Question], count: int, balanced: bool, rng: random.Random
) -> list[Question]:
    if not balanced:
        chosen = rng.sample(range(len(questions)), min(count, len(questions)))
        return [questions[index] for index in sorted(chosen)]
    by_answer: defaultdict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        by_answer[question.reference].append(index)
    picked: list[int] = []
    for answer, quota in quotas(sorted(by_answer), count).items():
        picked += rng.sample(by_answer[answer], min(quota, len(by_answer[answer])))
    return [questions[index] for index in sorted(picked)]


def quotas(answers: Sequence[str], count: int) -> dict[str, int]:
    """Return equal shares of `count`; the first answers get one more if it does not divide.

    Example::

        quotas(("A", "B", "C"), 4000) == {"A": 1334, "B": 1333, "C": 1333}
    """
    each, more = divmod(count, len(answers))
    return {answer: each + (position < more) for position, answer in enumerate(answers)}


def answer_counts(questions: Sequence[Question]) -> dict[str, int]:
    """Return how often each option is the right one; empty for open questions."""
    return dict(sorted(Counter(q.reference for q in questions if q.choices).items()))
