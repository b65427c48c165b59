"""Rows of own tasks: gold answers and options are what the file says, or the row is named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sirt_ray.benchmarks import rows
from sirt_ray.benchmarks.base import Benchmark
from sirt_ray.benchmarks.custom import counted, custom_benchmark, made_rows
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config.custom import CustomBenchmarkConfig
from sirt_ray.errors import DataError
from sirt_ray.storage import row_files
from sirt_ray.types import Question


def task(tmp_path: Path, **settings: Any) -> Benchmark:
    (tmp_path / "judge.py").write_text("def judge(text, question): ...\n")
    settings = {"verifier": f"{tmp_path}/judge.py:judge", **settings}
    return custom_benchmark("own", CustomBenchmarkConfig(**settings))


def questions(benchmark: Benchmark, path: Path) -> list[Question]:
    """What a run makes of one file, without Ray: see `on_ray/data/read.py`."""
    found = list(row_files.read(path, [*benchmark.columns, "id"]))
    if benchmark.positions is not None:
        numbers = {benchmark.positions.of(row.values) for row in found}
        benchmark = counted(benchmark, "test", str(path), {one for one in numbers if one})
    converted = [rows.convert(benchmark, row.values, row.where, row.problem) for row in found]
    made, bad = rows.number(benchmark, "test", converted)
    if bad:
        raise DataError("\n".join(map(str, bad)))
    return made


def written(path: Path, *given: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


@pytest.mark.parametrize(
    "golds",
    [
        ["2024-05-17", "2023-01-02"],
        ["007", "010"],
        ["1.50", "2.00"],
        ["18:30", "06:05"],
        ["true", "false"],
        ["NA", "NA"],
        ["1e3", "Infinity"],
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_texts_are_gold_as_written(tmp_path: Path, golds: list[str], ending: str) -> None:
    path = tmp_path / f"test.{ending}"
    if ending == "csv":
        path.write_text("question,answer\n" + "".join(f"Which?,{gold}\n" for gold in golds))
    else:
        written(path, *({"question": "Which?", "answer": gold} for gold in golds))
    found = questions(task(tmp_path, kind="text"), path)
    assert [question.reference for question in found] == golds


def test_a_column_of_numbers_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    golds = [*map(str, range(10_000)), "3.5", "1/2"]
    text = "what is it? " * 10
    path.write_text("question,answer\n" + "".join(f"{text}{n},{n}\n" for n in golds))
    assert path.stat().st_size > 1 << 20
    found = questions(task(tmp_path), path)
    assert len(found) == 10_002 and [one.reference for one in found[-2:]] == ["3.5", "0.5"]
    mixed = written(
        tmp_path / "test.jsonl",
        {"question": "a", "answer": 7},
        {"question": "b", "answer": "1/2"},
    )
    assert [one.reference for one in questions(task(tmp_path), mixed)] == ["7", "0.5"]


def test_numbers_of_32_bits(tmp_path: Path) -> None:
    table = pa.table({"question": ["a"], "answer": pa.array([0.1], pa.float32())})
    pq.write_table(table, tmp_path / "test.parquet")
    (question,) = questions(task(tmp_path), tmp_path / "test.parquet")
    assert question.reference == "0.1"


@pytest.mark.parametrize(
    ("options", "gold", "texts", "letter"),
    [
        (["2019-01-01", "2020-01-01"], "B", ("2019-01-01", "2020-01-01"), "B"),
        ({"A": "chair", "B": "apple"}, "B", ("chair", "apple"), "B"),
        ({"B": "apple", "A": "chair"}, "B", ("chair", "apple"), "B"),
        ({"x": "chair", "y": "apple"}, "y", ("chair", "apple"), "B"),
        ({"label": ["A", "B"], "text": ["chair", "apple"]}, "B", ("chair", "apple"), "B"),
        ({"label": ["1", "2"], "text": ["chair", "apple"]}, "1", ("chair", "apple"), "A"),
        ({"label": [1, 2], "text": ["chair", "apple"]}, 2, ("chair", "apple"), "B"),
        ({"label": ["1", "2"], "text": ["chair", "apple"]}, "apple", ("chair", "apple"), "B"),
        ([{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], "A", ("x", "y"), "A"),
        ([1, 2.5, "x"], "x", ("1", "2.5", "x"), "C"),
    ],
)
def test_options_in_each_form(
    tmp_path: Path, options: Any, gold: Any, texts: tuple[str, ...], letter: str
) -> None:
    row = {"question": "Which?", "choices": options, "answer": gold}
    (question,) = questions(
        task(tmp_path, choices="choices"), written(tmp_path / "test.jsonl", row)
    )
    assert (question.choices, question.reference) == (texts, letter)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"answer": ["x", "y"]}, r"row 1 \(row 2\): 'answer' is \['x', 'y'\] and neither"),
        ({"answer": {"value": 3}}, "'answer' is {'value': 3} and neither text nor a number"),
        ({"answer": None}, "'answer' is empty"),
        ({"answer": float("nan")}, "'answer' is empty"),
        ({"answer": "\ud83d"}, r"'answer' has '\\ud83d' as character 1"),
        ({"question": "a \ud83d"}, r"'question' has '\\ud83d' as character 3"),
        ({"question": [{"role": "user", "content": "a"}] * 2}, "a chat of user, user"),
        ({"choices": ["x", None]}, "'choices': option 2 is None and neither text nor a number"),
        ({"choices": ["x", ["y"]]}, r"option 2 is \['y'\] and neither"),
        ({"choices": ["x", "\udc00"]}, r"'choices' has '\\udc00'"),
        ({"choices": {"A": "x", "B": None}}, "option 2 is None"),
        ({"choices": {"label": ["A"], "text": ["x", "y"]}}, "1 labels and 2 texts"),
        ({"choices": {"label": ["A", "A"], "text": ["x", "y"]}}, "has a label twice: A, A"),
        ({"choices": "x|y"}, "is 'x|y' and not a list of options"),
        ({"choices": ["x"]}, "there are 1 options"),
        ({"choices": list(map(str, range(100, 140)))}, "there are 40 options"),
    ],
)
def test_what_is_no_text_is_refused_with_its_row(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    row = {"question": "Which?", "choices": ["x", "y"], "answer": "A"}
    if "answer" in changed:
        benchmark, row = task(tmp_path, kind="text"), {"question": "a", "answer": "b"}
    else:
        benchmark = task(tmp_path, choices="choices")
    with pytest.raises(DataError, match=said) as caught:
        questions(benchmark, written(tmp_path / "test.jsonl", row, row | changed, row))
    assert str(caught.value).startswith("row 1 (row 2): ")


def test_a_chat_of_one_message_is_its_text(tmp_path: Path) -> None:
    row = {"question": [{"role": "user", "content": "2 + 2?"}], "answer": 4}
    (question,) = questions(task(tmp_path), written(tmp_path / "test.jsonl", row))
    assert question.text == "2 + 2?"


def choice_rows(*golds: object, count: int = 4) -> list[dict[str, object]]:
    options = [f"option {letter}" for letter in "ABCDE"[:count]]
    return [{"question": "Which?", "choices": options, "answer": gold} for gold in golds]


@pytest.mark.parametrize(
    ("golds", "letters"),
    [
        ([0, 1, 3], "ABD"),
        (["1", "0"], "BA"),
        ([1, 2, 4], "ABD"),
        (["4", "1", "B", "option C"], "DABC"),
        (["A", 2, 4], "ABD"),
        (["C", "option A"], "CA"),
    ],
)
def test_positions_are_counted_as_their_column_does(
    tmp_path: Path, golds: list[object], letters: str
) -> None:
    path = written(tmp_path / "test.jsonl", *choice_rows(*golds))
    found = questions(task(tmp_path, choices="choices"), path)
    assert "".join(question.reference for question in found) == letters


def test_two_options_counted_from_1(tmp_path: Path) -> None:
    path = written(tmp_path / "test.jsonl", *choice_rows("1", "2", "1", count=2))
    found = questions(task(tmp_path, choices="choices"), path)
    assert "".join(question.reference for question in found) == "ABA"


@pytest.mark.parametrize("golds", [[1, 2, 3], ["1"], [2, "A"]])
def test_positions_that_may_be_counted_either_way_are_refused(
    tmp_path: Path, golds: list[object]
) -> None:
    path = written(tmp_path / "test.jsonl", *choice_rows(*golds))
    with pytest.raises(DataError, match=r"own, split test \(.*counted from 0 or from 1"):
        questions(task(tmp_path, choices="choices"), path)


@pytest.mark.parametrize("golds", [[0, 4], [0, 9], [4, 9]])
def test_a_position_that_no_option_has_is_refused(tmp_path: Path, golds: list[object]) -> None:
    path = written(tmp_path / "test.jsonl", *choice_rows(*golds))
    with pytest.raises(DataError, match=r"row 1 .*neither the letter, the text nor the position"):
        questions(task(tmp_path, choices="choices"), path)


def test_rows_of_a_function_are_one_table_whatever_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIRT_ALLOW_CODE", "1")
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "def own(split):\n"
        "    yield {'question': 'a', 'choices': {'B': 'x', 'A': 'y'}, 'answer': 'B'}\n"
        "    yield {'question': 'b', 'choices': {'x': 1, 'y': 2.5, 'z': '3'}, 'answer': 'z'}\n"
        "    yield {'question': 'c', 'choices': [np.float32(0.1), 2], 'answer': np.int64(0)}\n"
    )
    benchmark = custom_benchmark(
        "own", CustomBenchmarkConfig(rows=f"{tmp_path}/own.py:own", choices="choices")
    )
    found = [benchmark.to_question(row, "x") for row in made_rows(benchmark, "train")]
    assert [(one.choices, one.reference) for one in found] == [
        (("y", "x"), "B"),
        (("1", "2.5", "3"), "C"),
        (("0.1", "2"), "A"),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("'choices': ['x', '\\ud83d'], 'answer': 0", r"'choices' has '\\ud83d'"),
        ("'choices': ['x', 'y'], 'answer': 10**5000", "Exceeds the limit"),
    ],
)
def test_what_no_text_can_be_of_a_function_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, said: str
) -> None:
    monkeypatch.setenv("SIRT_ALLOW_CODE", "1")
    source = f"def own(split):\n    return [{{'question': 'a', {row}}}]\n"
    (tmp_path / "own.py").write_text(source)
    config = CustomBenchmarkConfig(rows=f"{tmp_path}/own.py:own", choices="choices")
    with pytest.raises(DataError, match=rf"own\.py:own\): row 0: {said}"):
        made_rows(custom_benchmark("own", config), "train")


@pytest.mark.parametrize("name", ["mmlu", "commonsense_qa"])
def test_options_of_the_hubs_benchmarks_are_texts_too(name: str) -> None:
    row = {"question": "Which?", "answer": 0, "answerKey": "A"}
    choices: Any = ["x", None, "y", "z"]
    if name != "mmlu":
        choices = {"label": ["A", "B"], "text": ["x", ["y"]]}
    with pytest.raises(DataError, match="option 2 is"):
        REGISTRY[name].to_question({**row, "choices": choices}, "x")
