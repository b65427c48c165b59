"""Benchmarks: what a row means, and what is wrong with a row."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from sirt_ray.benchmarks import rows
from sirt_ray.benchmarks.base import Hub
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.errors import DataError
from sirt_ray.quickstart import tasks
from sirt_ray.types import Judgement, Question
from tests.helpers.benchmark_rows import ARITH, CSQA, OBQA, PIQA, ROWS, SIQA, real_rows


@pytest.mark.parametrize(
    ("name", "text", "choices", "reference"),
    [
        ("gsm8k", "How many?", (), "1200"),
        ("multiarith", "How many?", (), "39"),
        ("commonsense_qa", "Where are canals?", ("Oslo", "Venice", "Rome"), "B"),
        ("openbookqa", "The sun is responsible for", ("puppies", "plants"), "B"),
        ("piqa", "Dry a cup", ("Use a towel.", "Use water."), "A"),
        ("social_i_qa", "Tracy stayed. Why?", ("to rest", "to run", "to sing"), "C"),
        ("math", "Solve.", (), "\\frac{1}{2}"),
        ("mmlu", "Which?", ("w", "x", "y", "z"), "C"),
        ("word_problems_ood", "How many?", (), "1200"),
        ("letter_choices", "Where are canals?", ("Oslo", "Venice", "Rome"), "B"),
    ],
)
def test_row_becomes_question(
    name: str, text: str, choices: tuple[str, ...], reference: str
) -> None:
    question = REGISTRY[name].to_question(ROWS[name], f"{name}/train/0")
    assert question == Question(f"{name}/train/0", name, text, choices, reference)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_benchmark_is_consistent(name: str) -> None:
    benchmark = REGISTRY[name]
    assert benchmark.name == name
    assert set(benchmark.columns) <= set(ROWS[name])
    copied = pickle.loads(pickle.dumps(benchmark))
    assert copied.to_question(ROWS[name], "x") == benchmark.to_question(ROWS[name], "x")
    for column in benchmark.columns:
        row = {key: value for key, value in ROWS[name].items() if key != column}
        with pytest.raises(DataError):
            benchmark.to_question(row, "x")


def test_four_qa_tasks_follow_the_paper() -> None:
    balanced = {name for name, benchmark in REGISTRY.items() if benchmark.balanced}
    assert balanced == {"commonsense_qa", "openbookqa", "piqa", "social_i_qa"}
    for name in balanced:
        assert REGISTRY[name].default_num_train == 4000
        assert REGISTRY[name].test[0] == "validation"
    assert REGISTRY["gsm8k"].default_num_train is None


def test_hub_sets_are_pinned() -> None:
    for benchmark in REGISTRY.values():
        if isinstance(benchmark.source, Hub):
            revision = benchmark.source.revision
            assert len(revision) == 40 or revision == "refs/convert/parquet"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("gsm8k", {"question": "  "}, "'question' is empty"),
        ("gsm8k", {"question": None}, "'question' is None and not text"),
        ("gsm8k", {"answer": "1200"}, "does not end in '#### <number>'"),
        ("gsm8k", {"answer": "#### many"}, "the gold answer 'many' is not a number"),
        ("multiarith", {"final_ans": ""}, "the gold answer '' is not a number"),
        ("commonsense_qa", {"answerKey": ""}, "the gold answer '' is none of the options A, B, C"),
        ("commonsense_qa", {"answerKey": "F"}, "'F' is none of the options A, B, C"),
        ("commonsense_qa", {"choices": None}, "'choices' is None"),
        (
            "commonsense_qa",
            {"choices": {"label": ["A"], "text": ["x", "y"]}},
            "1 labels and 2 texts",
        ),
        ("openbookqa", {"choices": {"label": ["A"], "text": ["x"]}}, "there are 1 options"),
        ("openbookqa", {"choices": {"label": ["A", "B"], "text": ["x", " "]}}, "option B is empty"),
        ("piqa", {"label": -1}, "the gold answer -1 is none of the options 0, 1"),
        ("social_i_qa", {"label": "4"}, "'4' is none of the options 1, 2, 3"),
        ("social_i_qa", {"answerC": ""}, "'answerC' is empty"),
        ("math", {"solution": "It is 5."}, "no answer in \\boxed{...}"),
        ("mmlu", {"answer": 4}, "4 is none of the options 0, 1, 2, 3"),
        ("mmlu", {"choices": "wxyz"}, "not a list"),
    ],
)
def test_bad_row_is_explained(name: str, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        REGISTRY[name].to_question(ROWS[name] | change, "x")
    assert reason in str(caught.value)


def test_labels_may_have_spaces_or_be_numbers() -> None:
    assert REGISTRY["social_i_qa"].to_question(SIQA | {"label": "1\n"}, "x").reference == "A"
    assert REGISTRY["piqa"].to_question(PIQA | {"label": "1"}, "x").reference == "B"
    assert REGISTRY["multiarith"].to_question(ARITH | {"final_ans": 39.0}, "x").reference == "39"


def test_all_bad_rows_are_counted_and_five_are_shown() -> None:
    benchmark = REGISTRY["openbookqa"]
    given = [OBQA | {"id": f"t-{index}", "answerKey": "AB"[index % 2] * 2} for index in range(7)]
    questions, bad = rows.number(
        benchmark, "train", [rows.convert(benchmark, row) for row in [OBQA, *given]]
    )
    assert [question.id for question in questions] == ["openbookqa/train/0"]
    message = rows.bad_rows_message("openbookqa", "train", "train.parquet", bad, 8)
    assert "openbookqa, split train (train.parquet): 7 of 8 rows" in message
    assert "row 1 (id 't-0'): the gold answer 'AA' is none of the options A, B" in message
    assert "row 5 (id 't-4')" in message
    assert "row 6" not in message
    assert "and 2 more" in message


def test_grade_uses_the_questions_options() -> None:
    question = REGISTRY["commonsense_qa"].to_question(CSQA, "x")
    grade = REGISTRY["commonsense_qa"].grade
    assert grade("The answer is Venice.", question) == Judgement("right", "B", stated=True)
    assert grade("The answer is (A).", question) == Judgement("wrong", "A", stated=True)
    assert grade("Both.", question) == Judgement("unparseable", None, stated=False)


# Real and generated rows


@pytest.mark.parametrize("name", [n for n, b in REGISTRY.items() if isinstance(b.source, Hub)])
def test_every_real_row_is_a_question(assets: Path, name: str) -> None:
    benchmark, num_rows = REGISTRY[name], 0
    for part, given in real_rows(assets, benchmark):
        converted = [rows.convert(benchmark, row) for row in given]
        questions, bad = rows.number(benchmark, part, converted)
        assert not bad, rows.bad_rows_message(name, part, "", bad, len(given))
        assert len({question.id for question in questions}) == len(given)
        num_rows += len(given)
    assert num_rows >= 500


@pytest.mark.parametrize("name", ["commonsense_qa", "openbookqa", "piqa", "social_i_qa", "mmlu"])
def test_every_dress_of_the_gold_option_is_right(assets: Path, name: str) -> None:
    """Naming the letter and the text is always right; so is the letter alone, in any dress."""
    benchmark = REGISTRY[name]
    for _, given in real_rows(assets, benchmark):
        questions = [benchmark.to_question(row, "x") for row in given[:1000]]
        for dress in ("{0}", "({0})", "**{0}**", "The answer is {0}.", "Answer: {0}) {1}"):
            for question in questions:
                text = question.choices[ord(question.reference) - ord("A")]
                found = benchmark.grade(dress.format(question.reference, text), question)
                assert found.verdict == "right", (dress, question)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_generated_rows_are_questions(name: str) -> None:
    benchmark = REGISTRY[name]
    converted = [rows.convert(benchmark, row) for row in tasks.rows(name, "train", 200, 3)]
    questions, bad = rows.number(benchmark, "train", converted)
    assert not bad
    assert {question.benchmark for question in questions} == {name}
