"""A file of answers: which question a row answers, and that every row and question is counted."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sirt_ray.artifacts import parquet
from sirt_ray.benchmarks.answer_file import Answers, check, identity, read_answers
from sirt_ray.config.job import DemonstrationsConfig
from sirt_ray.config.teacher import DemonstrationFileConfig
from sirt_ray.core import prompts
from sirt_ray.core.demonstrations import keep_demonstrations
from sirt_ray.errors import DataError
from sirt_ray.types import Demonstration, Question

APPLES = Question("gsm8k/train/0", "gsm8k", "How many apples are 2 and 2?", (), "4")
PEARS = Question("gsm8k/train/1", "gsm8k", "How many pears are 3 and 3?", (), "6")
PLUMS = Question("gsm8k/train/2", "gsm8k", "How many plums are 4 and 4?", (), "8")
CANALS = Question(
    "commonsense_qa/train/0", "commonsense_qa", "Where are canals?", ("Venice", "Rome"), "A"
)
ROME = Question(
    "commonsense_qa/train/1", "commonsense_qa", "Where are canals?", ("Rome", "Venice"), "B"
)
QUESTIONS = [APPLES, PEARS, PLUMS, CANALS, ROME]
HELD_OUT = [Question("gsm8k/train/9", "gsm8k", "How many figs are 1 and 1?", (), "2")]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def read(path: Path, **settings: str) -> Answers:
    config = DemonstrationFileConfig(path=str(path), **settings)
    check(config)
    return read_answers(config, QUESTIONS, HELD_OUT)


def answered(found: Answers) -> list[tuple[str, int, str]]:
    return [
        (item.completion.question_id, item.completion.sample_index, item.verdict)
        for item in found.graded
    ]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_rows_find_their_question_by_id(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"question_id": PEARS.id, "completion": "3 and 3,\nso the answer is 6."},
        {"question_id": APPLES.id, "completion": "The answer is 5."},
    ]
    found = read(write(tmp_path / f"answers.{suffix}", rows))
    assert answered(found) == [(PEARS.id, 0, "right"), (APPLES.id, 0, "wrong")]
    assert found.graded[0].completion.text == "3 and 3,\nso the answer is 6."
    assert found.graded[0].completion.stop_reason == "stop"
    assert found.graded[0].completion.completion_ids == ()


def test_or_by_their_text_in_any_case_and_spacing(tmp_path: Path) -> None:
    rows = [{"q": "  how many APPLES are\n2 and 2? ", "response": "The answer is 4."}]
    path = write(tmp_path / "answers.jsonl", rows)
    found = read(path, question_column="q", completion_column="response")
    assert answered(found) == [(APPLES.id, 0, "right")]


@pytest.mark.parametrize("kind", ["cot", "plain"])
@pytest.mark.parametrize("form", [prompts.render, prompts.chat_message])
def test_or_by_the_whole_prompt(tmp_path: Path, form: Any, kind: Any) -> None:
    rows = [{"prompt": form(ROME, kind), "completion": "The answer is B."}]
    found = read(write(tmp_path / "answers.jsonl", rows), question_column="prompt")
    assert answered(found) == [(ROME.id, 0, "right")]


def test_everything_is_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": APPLES.text, "completion": "The answer is 4."},
        {"question": APPLES.text, "completion": "The answer is 4."},  # again
        {"question": APPLES.text, "completion": "The answer is 5."},  # another answer
        {"question": PEARS.text, "completion": None},
        {"question": "How old am I?", "completion": "The answer is 4."},
        {"question": HELD_OUT[0].text, "completion": "The answer is 2."},
        {"question": CANALS.text, "completion": "The answer is A."},  # two have this text
        {"question": None, "completion": "The answer is 4."},
        {"question": PLUMS.text, "completion": "I do not know."},
    ]
    found = read(write(tmp_path / "answers.jsonl", rows))
    assert answered(found) == [
        (APPLES.id, 0, "right"),
        (APPLES.id, 1, "wrong"),
        (PEARS.id, 0, "unparseable"),
        (PLUMS.id, 0, "unparseable"),
    ]
    assert found.counts == {
        "rows": 9,
        "matched": 4,
        "unmatched_rows": 2,
        "held_out_rows": 1,
        "ambiguous_rows": 1,
        "duplicate_rows": 1,
        "empty": 1,
        "right": 1,
        "wrong": 1,
        "unparseable": 1,
    }
    _, fates = keep_demonstrations(QUESTIONS, found.graded, DemonstrationsConfig())
    assert fates == {
        "questions": 5,
        "kept": 1,
        "dropped_empty": 1,
        "dropped_unparseable": 1,
        "dropped_not_answered": 2,
    }


def test_the_benchmark_tells_equal_texts_apart(tmp_path: Path) -> None:
    twin = Question("multiarith/train/0", "multiarith", APPLES.text, (), "4")
    rows = [{"question": APPLES.text, "benchmark": "multiarith", "completion": "The answer is 4."}]
    config = DemonstrationFileConfig(path=str(write(tmp_path / "answers.jsonl", rows)))
    found = read_answers(config, [APPLES, twin], [])
    assert answered(found) == [(twin.id, 0, "right")]


def test_an_id_whose_text_is_another_ones_does_not_count(tmp_path: Path) -> None:
    """The file was made on other rows: its ids mean other questions."""
    rows = [{"question_id": APPLES.id, "question": PEARS.text, "completion": "The answer is 6."}]
    found = read(write(tmp_path / "answers.jsonl", rows))
    assert answered(found) == [(PEARS.id, 0, "right")]


def test_the_demonstrations_of_another_run_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = [{"question_id": CANALS.id, "completion": "The answer is A."}]
    first = read(write(tmp_path / "answers.jsonl", rows))
    kept = [Demonstration(CANALS, item) for item in first.graded]
    path = tmp_path / "demonstrations.parquet"
    parquet.write(path, map(parquet.to_row, kept), parquet.DEMONSTRATION)
    assert read(path).graded == first.graded


def test_a_file_about_other_questions_is_refused_with_both_sides_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "answers.jsonl", [{"question": "How old?", "completion": "4"}])
    with pytest.raises(DataError, match=r"none of the 1 rows.*How old\?.*How many apples"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.jsonl", None, "no file"),
        ("answers.txt", "4", ".parquet"),
        ("answers.jsonl", "", "no rows"),
        ("answers.jsonl", "{", "cannot be read"),
        ("answers.parquet", "not a table", "cannot be read"),
        ("answers.jsonl", '{"question": "a", "answer": "b"}', "no column 'completion'"),
        ("answers.jsonl", '{"completion": "a"}', "set question_column"),
        ("answers.jsonl", '{"a": 1}', "completion_column), and neither"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_once(
    tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        check(DemonstrationFileConfig(path=str(tmp_path / name)))
    assert words in str(caught.value) and "teacher.demonstrations.path" in str(caught.value)


@pytest.mark.parametrize("line", ["{", "7"])
def test_a_later_row_that_is_none_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"question_id": "a", "completion": "b"}\n' + line)
    with pytest.raises(DataError, match=r"answers\.jsonl"):
        read(path)


def test_identity_is_the_content_and_the_columns_and_not_the_place(tmp_path: Path) -> None:
    rows = [{"question_id": APPLES.id, "completion": "4", "other": "5"}]
    first = DemonstrationFileConfig(path=str(write(tmp_path / "a.jsonl", rows)))
    same = DemonstrationFileConfig(path=str(write(tmp_path / "b.jsonl", rows)))
    assert identity(first) == identity(same)
    assert identity(first) != identity(same.model_copy(update={"completion_column": "other"}))
    write(tmp_path / "b.jsonl", [*rows, *rows])
    assert identity(first) != identity(same)


CHAT = [{"role": "assistant", "content": "2 + 2 = 4. The answer is 4."}]
USER = [{"role": "user", "content": [{"type": "text", "text": APPLES.text}]}]


def test_a_chat_of_one_message_is_its_text(tmp_path: Path) -> None:
    rows = [{"question": USER, "completion": CHAT}, {"question": PEARS.text, "completion": CHAT}]
    found = read(write(tmp_path / "answers.jsonl", rows))
    assert answered(found) == [(APPLES.id, 0, "right"), (PEARS.id, 0, "wrong")]
    assert found.graded[0].completion.text == CHAT[0]["content"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"completion": [*USER, *CHAT]}, "is a chat of user, assistant, and only one"),
        ({"completion": USER}, "is a chat of user"),
        (
            {"completion": [{"role": "assistant"}]},
            "is a message that has no text",
        ),
        (
            {"completion": [{**CHAT[0], "thinking": "so"}]},
            "is a message that also has 'thinking'",
        ),
        ({"completion": ["The answer is 4."]}, "is ['The answer is 4.'] and not text"),
        ({"completion": {"text": "4"}}, "is {'text': '4'} and not text"),
        ({"completion": "\ud83d 4"}, "has '\\ud83d' as character 1"),
        (
            {"question": [{"role": "system", "content": "Hi"}, *USER]},
            "is a chat of system, user",
        ),
    ],
)
def test_an_answer_that_is_no_text_is_refused_with_its_row(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    row = {"question": APPLES.text, "completion": "The answer is 4."}
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "answers.jsonl", [row, row | changed, row]))
    (column,) = changed
    assert f"row 2: {column!r} {said}" in str(caught.value)
    assert "answers.jsonl: 1 rows cannot be read" in str(caught.value)


@pytest.mark.parametrize("content", [b'{"question": ', b"\xff", b"[1]"])
def test_a_line_that_is_no_row_is_named_with_the_others(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "answers.jsonl", [{"question": APPLES.text, "completion": "4"}])
    path.write_bytes(path.read_bytes() + b"\n" + content + b"\n{}{")
    with pytest.raises(DataError, match=r"answers\.jsonl: 2 rows .*\n  row 2 \(line 3\) ?:? ?is"):
        read(path)


def test_a_long_answer_behind_a_byte_order_mark(tmp_path: Path) -> None:
    answer = "word " * 40_000 + "The answer is 4."
    path = tmp_path / "answers.CSV"
    path.write_text(f'question,completion\n{APPLES.text},"{answer}"\n', encoding="utf-8-sig")
    found = read(path)
    assert answered(found) == [(APPLES.id, 0, "right")]
    assert found.graded[0].completion.text == answer


def test_a_path_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "answers.jsonl", [{"question": APPLES.text, "completion": "4"}])
    assert read(Path("~/answers.jsonl")).counts["matched"] == 1
    with pytest.raises(DataError, match="no file"):
        read(Path("~nobody-of-this-name/answers.jsonl"))
