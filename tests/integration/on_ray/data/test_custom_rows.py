"""Rows of custom benchmarks, from files and from functions, through a real local Ray."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sirt_ray import user_code
from sirt_ray.artifacts import parquet
from sirt_ray.config.data import DataConfig
from sirt_ray.errors import DataError
from sirt_ray.on_ray.data.read import prepare_questions
from sirt_ray.types import Question
from tests.helpers.progress import RecordedProgress

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def config(**settings: Any) -> DataConfig:
    return DataConfig.model_validate({"num_validation": 10} | settings)


def questions(out: Path, name: str, split: str) -> list[Question]:
    return list(parquet.records(Question, out / name / f"{split}.parquet"))


def test_custom_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(user_code.ALLOW, "1")
    (tmp_path / "own.py").write_text(
        "def sums(split):\n"
        "    for n in range(40):\n"
        "        yield {'question': f'{split} {n} + 0.5?', 'answer': n + 0.5 if n % 2 else n}\n"
        "def mixed(split):\n"
        "    return [{'question': '?', 'answer': answer} for answer in ([1], 'x')]\n"
        "def broken(split):\n"
        "    return [{'question': 'Who?', 'answer': 'she'}, {'question': '1 + 1?', 'answer': 2}]\n"
    )
    for split in ("train", "test"):
        fruit = [{"q": f"{split} {n}?", "o": ["plum", f"fig {n}"], "a": "B"} for n in range(30)]
        path = tmp_path / "rows/fruit" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(fruit), path)
    settings: dict[str, Any] = {
        "train": ["sums", "fruit"],
        "evaluate": ["sums", "fruit"],
        "root": str(tmp_path / "rows"),
        "benchmarks": {
            "sums": f"{tmp_path}/own.py:sums",
            "fruit": {"question": "q", "answer": "a", "choices": "o", "instruction": "Choose."},
        },
    }
    counts = prepare_questions(tmp_path / "out", config(**settings), 0, RecordedProgress())
    assert counts["sums"]["training_rows"]["rows"] == 40
    found = questions(tmp_path / "out", "sums", "test")
    assert [question.reference for question in found[:3]] == ["0", "1.5", "2"]
    (first, *_) = questions(tmp_path / "out", "fruit", "test")
    assert first == Question("fruit/test/0", "fruit", "test 0?", ("plum", "fig 0"), "B", "Choose.")
    settings["benchmarks"]["sums"] = f"{tmp_path}/own.py:mixed"
    with pytest.raises(DataError, match=r"own\.py:mixed\): the rows are not a table"):
        prepare_questions(tmp_path / "again", config(**settings), 0, RecordedProgress())
    settings["benchmarks"]["sums"] = f"{tmp_path}/own.py:broken"
    with pytest.raises(DataError, match=r"own\.py:broken\).* 1 of 2 rows.*\n.*row 0: .*'she'"):
        prepare_questions(tmp_path / "again", config(**settings), 0, RecordedProgress())


def test_rows_of_every_kind_are_read_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(user_code.ALLOW, "1")
    (tmp_path / "judge.py").write_text("def judge(text, question): ...\n")
    root = tmp_path / "r [1] ? ü"
    for name in ("dates", "winner"):
        (root / name).mkdir(parents=True)
    (root / "dates" / "train.csv").write_text("question,answer\nWhen?,2024-05-17\nWho?,007\n")
    (root / "dates" / "test.jsonl").write_text(
        '{"question": "When?", "answer": "2024-05-17"}\n{"question": "How many?", "answer": 7}\n'
    )
    choice = '{{"question": "Who?", "choices": {{"1": "she", "2": "he {0}"}}, "answer": {0}}}\n'
    (root / "winner" / "test.ndjson").write_text(choice.format(1) + choice.format(2))
    listed = '{{"question": "Who {0}?", "choices": ["she", "he"], "answer": "{0}"}}\n'
    (root / "winner" / "train.jsonl").write_text("".join(map(listed.format, (1, 2, 1))))
    settings = config(
        train=["dates", "winner"],
        evaluate=["dates", "winner"],
        num_validation=0,
        root=str(root),
        benchmarks={
            "dates": {"kind": "text", "verifier": f"{tmp_path}/judge.py:judge"},
            "winner": {"choices": "choices"},
        },
    )
    prepare_questions(tmp_path / "out", settings, 0, RecordedProgress())
    for name, split, references in (
        ("dates", "train", ["2024-05-17", "007"]),
        ("dates", "test", ["2024-05-17", "7"]),
        ("winner", "train", ["A", "B"]),
        ("winner", "test", ["A", "B"]),
    ):
        found = questions(tmp_path / "out", name, split)
        assert [question.reference for question in found] == references, (name, split)
