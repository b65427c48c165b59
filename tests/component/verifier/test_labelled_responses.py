"""The verifier on a thousand responses with known answers, made from real benchmark rows."""

import random
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sirt_ray.benchmarks import files
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.types import Question, Verdict
from sirt_ray.verifier import answers, expressions
from tests.helpers import responses

BENCHMARKS = (
    *("gsm8k", "multiarith", "math"),
    *("commonsense_qa", "openbookqa", "piqa", "social_i_qa", "mmlu"),
)
ROWS_EACH = 125
UNPARSEABLE = ("I am not sure about this.", "", "It cannot be said from what is given.")


def questions(assets: Path, name: str, rng: random.Random) -> list[Question]:
    benchmark = REGISTRY[name]
    (path, *_) = files.find(assets / "data", benchmark, "test")
    rows = pq.read_table(path).to_pylist()
    return [benchmark.to_question(row, "x") for row in rng.choices(rows, k=2 * ROWS_EACH)]


def said(rng: random.Random, question: Question, other: Question, *, right: bool) -> str:
    """A response that gives the gold answer, or another one."""
    if question.choices:
        letters = "ABCDEFGHIJ"[: len(question.choices)]
        wrong = rng.choice([letter for letter in letters if letter != question.reference])
        letter = question.reference if right else wrong
        return responses.spoken_choice(rng, question.choices, letter)
    answer = question.reference if right else other.reference
    if question.benchmark == "math":
        return responses.spoken_expression(rng, answer)
    return responses.spoken_number(rng, answer, stated=rng.random() < 0.8)


def labelled(assets: Path) -> list[tuple[Question, str, Verdict]]:
    rng = random.Random(0)
    rows: list[tuple[Question, str, Verdict]] = []
    for name in BENCHMARKS:
        given = questions(assets, name, rng)
        for question, other in zip(given[:ROWS_EACH], given[ROWS_EACH:], strict=True):
            right = rng.random() < 0.6 or (
                not question.choices and expressions.equal(question.reference, other.reference)
            )
            if rng.random() < 0.05:
                rows.append((question, rng.choice(UNPARSEABLE), "unparseable"))
            else:
                text = said(rng, question, other, right=right)
                rows.append((question, text, "right" if right else "wrong"))
    return rows


def test_known_answers_are_judged_as_they_are(assets: Path) -> None:
    rows = labelled(assets)
    assert len(rows) == 1000
    assert min(Counter(label for _, _, label in rows).values()) >= 25
    found = [
        (REGISTRY[question.benchmark].grade(text, question), label, text)
        for question, text, label in rows
    ]
    differ = [case for case in found if case[0].verdict != case[1]]
    assert len(differ) <= 5, differ


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "math"])
def test_undressed_answers_are_right(assets: Path, name: str) -> None:
    for question in questions(assets, name, random.Random(1)):
        assert REGISTRY[name].grade(question.reference, question).verdict == "right", question


def test_last_sentences_of_gold_solutions_come_to_the_gold_answer(assets: Path) -> None:
    """Without its mark, a gold solution of GSM8K ends in a sentence as a model's does, and some of
    them differ from their own answer (cents for dollars)."""
    (path, *_) = files.find(assets / "data", REGISTRY["gsm8k"], "test")
    differ: list[str] = []
    for row in pq.read_table(path).to_pylist():
        solution, _, answer = row["answer"].rpartition("####")
        text = re.sub(r"<<[^<>]*>>", "", solution)
        if answers.grade(text, answer.strip(), "number").verdict != "right":
            differ.append(text)
    assert len(differ) <= 13, differ
