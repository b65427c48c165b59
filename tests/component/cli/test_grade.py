"""`sirt grade`: what it prints and writes, and what it says to bad input."""

import datetime
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sirt_ray.cli.main import main

CITIES = ["Michigan", "New York", "Amsterdam", "Venice", "Bridge"]
HEAVY = ("torch", "ray", "transformers", "vllm", "datasets", "deepspeed", "sympy", "pyarrow")

GOOD: list[dict[str, Any]] = [
    {"response": "The answer is $18.", "reference": "18", "id": 7},
    {"response": "9 * 2 = 18", "reference": "18.00"},
    {"response": "#### 17", "reference": "9 * 2 = 18\n#### 18"},
    {"response": "No idea.", "reference": "18", "choices": None},
]


def written(tmp_path: Path, *rows: object) -> Path:
    file = tmp_path / "responses.jsonl"
    file.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return file


def graded(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["grade", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["grade", *map(str, arguments)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and "Traceback" not in told.err
    return told.err


def test_counts_are_printed_and_rows_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written(tmp_path, *GOOD, ""), tmp_path / "graded.jsonl"
    assert main(["grade", "--benchmark", "gsm8k", str(file), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"right": 2, "wrong": 1, "unparseable": 1, "accuracy": 0.5}
    assert told.out.count("\n") == 1
    assert "1 of 4 responses do not state" in told.err
    verdicts = [("right", "18", True), ("right", "18", False), ("wrong", "17", True)]
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        row | {"verdict": verdict, "extracted": extracted, "stated": stated, "undecided": False}
        for row, (verdict, extracted, stated) in zip(
            GOOD, [*verdicts, ("unparseable", None, False)], strict=True
        )
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graded.jsonl", "responses.jsonl"]


@pytest.mark.parametrize(
    ("benchmark", "choices", "reference", "response", "right"),
    [
        ("commonsense_qa", CITIES, "D", "The answer is (D).", 1),
        ("commonsense_qa", CITIES, "d", "Venice", 1),
        ("openbookqa", CITIES[:4], "A", "The answer is B.", 0),
        ("mmlu", CITIES[:4], 3, "Answer: D", 1),
        ("mmlu", CITIES[:4], "0", "Answer: A", 1),
        ("mmlu", CITIES[:4], "C", "Answer: C", 1),
        ("piqa", ["a jar", "a plate"], "1", "B", 1),
        ("social_i_qa", CITIES[:3], "3", "(C)", 1),
        ("gsm8k", None, "1,080", "The answer is $1080.00", 1),
        ("multiarith", None, 39, "The answer is 39.", 1),
        ("math", None, "x+1", "\\boxed{1+x}", 1),
        ("math", None, "So it is $\\boxed{\\frac12}$.", "The answer is 0.5.", 1),
    ],
)
def test_references_are_as_the_benchmark_gives_them(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    benchmark: str,
    choices: list[str] | None,
    reference: str | int,
    response: str,
    right: int,
) -> None:
    row = {"response": response, "reference": reference, "choices": choices}
    found = graded(capsys, "--benchmark", benchmark, written(tmp_path, row))
    assert (found["right"], found["accuracy"]) == (right, float(right))


def test_a_comparison_that_takes_too_long_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, {"response": "\\boxed{9^{9^{9^9}}}", "reference": "3^x"})
    assert main(["grade", "--benchmark", "math", str(file)]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["wrong"] == 1
    assert "1 of 1 answers could not be compared" in told.err


def test_all_bad_lines_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = (
        written(
            tmp_path,
            GOOD[0],
            "{not json",
            "[1]",
            {},
            {"response": 5, "reference": "many"},
            "[" * 100_000,
            {"response": "\ud800", "reference": "18"},
        ),
        tmp_path / "graded.jsonl",
    )
    with file.open("ab") as lines:
        lines.write(b'{"response": "\xff", "reference": "18"}\n')
    told = refused(capsys, "--benchmark", "gsm8k", file, "--out", out)
    assert "6 lines cannot be graded" in told
    for said in (
        "line 2: is no JSON (Expecting property name",
        "line 3: is [1] and not a record",
        'line 4: "response" is missing: the text that a model wrote; "reference" is missing',
        'line 5: "response" is 5 and not text; "reference" is \'many\' and not a number',
        "line 6: is no JSON (it cannot be read)",
        "line 8: is not UTF-8",
    ):
        assert said in told
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"response": "D", "reference": "D"}, '"choices" is missing'),
        ({"response": "D", "reference": "D", "choices": "ABC"}, "not a list"),
        ({"response": "D", "reference": "D", "choices": ["a", None]}, "option 2 is None"),
        ({"response": "D", "reference": "D", "choices": ["a", ["b"]]}, "option 2 is ['b']"),
        ({"response": "D", "reference": "D", "choices": ["a"]}, "has 1 options"),
        ({"response": "D", "reference": "F", "choices": CITIES}, "labels A, B, C, D, E"),
        ({"response": "D", "reference": "", "choices": CITIES}, "labels A, B, C, D, E"),
        ({"response": "D", "reference": None, "choices": CITIES}, "is None and not text"),
    ],
)
def test_a_choice_benchmark_needs_its_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], said: str
) -> None:
    told = refused(capsys, "--benchmark", "commonsense_qa", written(tmp_path, row))
    assert f"line 1: {said}" in told or said in told


ITEMS = [
    {"response": "The answer is 007.", "reference": "007", "note": "007"},
    {"response": "8", "reference": "9"},
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", b"response,reference,note\nThe answer is 007.,007,007\n8,9,\n"),
        ("r.tsv", b"response\treference\tnote\nThe answer is 007.\t007\t007\n8\t9\t\n"),
        ("r.json", json.dumps(ITEMS, indent=1).encode()),
        (
            "r.JSONL.GZ",
            gzip.compress("\n".join(map(json.dumps, ITEMS)).encode("utf-8-sig"), mtime=0),
        ),
        ("r [1]?.txt", "\n".join(map(json.dumps, ITEMS)).encode()),
    ],
)
def test_every_kind_of_file_is_graded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "out [1].jsonl"
    found = graded(capsys, "--benchmark", "gsm8k", tmp_path / name, "--out", out)
    assert (found["right"], found["wrong"]) == (1, 1)
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert (first["note"], first["verdict"], second["verdict"]) == ("007", "right", "wrong")


def test_typed_columns_and_chats_are_graded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = [{"role": "assistant", "content": "The answer is 0.1."}]
    table = pa.table(
        {
            "response": [chat],
            "reference": pa.array([0.1], pa.float32()),
            "day": [datetime.date(2024, 5, 17)],
        }
    )
    pq.write_table(table, tmp_path / "r.parquet")
    out = tmp_path / "out.jsonl"
    found = graded(capsys, "--benchmark", "gsm8k", tmp_path / "r.parquet", "--out", out)
    assert found["right"] == 1 and json.loads(out.read_text())["day"] == "2024-05-17"
    row = {"response": [*chat, *chat], "reference": 1}
    told = refused(capsys, "--benchmark", "gsm8k", written(tmp_path, row))
    assert "line 1: 'response' is a chat of assistant, assistant" in told


@pytest.mark.parametrize(
    ("choices", "reference", "right"),
    [
        ({"label": ["A", "B"], "text": ["chair", "apple"]}, "B", 1),
        ({"A": "chair", "B": "apple"}, "B", 1),
        ({"1": "chair", "2": "apple"}, "2", 1),
        ({"1": "chair", "2": "apple"}, 1, 0),
    ],
)
def test_options_may_be_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], choices: object, reference: Any, right: int
) -> None:
    row = {"response": "The answer is apple.", "reference": reference, "choices": choices}
    found = graded(capsys, "--benchmark", "commonsense_qa", written(tmp_path, row))
    assert found["right"] == right


def test_of_many_bad_lines_the_first_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, "--benchmark", "gsm8k", written(tmp_path, *(["x"] * 5000)))
    assert "5,000 lines cannot be graded" in told and "line 10:" in told
    assert "line 11:" not in told and "and 4,990 more" in told


def test_all_bad_arguments_are_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nowhere" / "graded.jsonl"
    told = refused(capsys, "--benchmark", "gsm9k", tmp_path / "nothing.jsonl", "--out", out)
    assert "gsm9k" in told and "commonsense_qa" in told
    assert "nothing.jsonl is no file" in told and "there is no folder" in told


def test_the_responses_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, *GOOD)
    before = file.read_text()
    assert "responses itself" in refused(capsys, "--benchmark", "gsm8k", file, "--out", file)
    assert file.read_text() == before


def test_a_file_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no rows" in refused(capsys, "--benchmark", "gsm8k", written(tmp_path, "", " "))


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["grade", "--help"])
    assert "sirt grade --benchmark gsm8k responses.jsonl" in capsys.readouterr().out


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    file = written(tmp_path, *GOOD)
    code = (
        "import sys; from sirt_ray.cli.main import main;"
        f"main(['grade', '--benchmark', 'gsm8k', {str(file)!r}]);"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "[]"
