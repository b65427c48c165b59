"""Benchmarks: what a row means, what is wrong with a row, and which rows a run takes."""

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sirt_ray.benchmarks import files, rows
from sirt_ray.benchmarks.base import Benchmark, Hub, Part
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.benchmarks.selection import (
    contaminated,
    quotas,
    select_test,
    select_training,
    text_key,
)
from sirt_ray.errors import DataError
from sirt_ray.quickstart import tasks
from sirt_ray.types import Question

CSQA = {
    "id": "x1",
    "question": "Where are canals?",
    "choices": {"label": ["A", "B", "C"], "text": ["Oslo", "Venice", "Rome"]},
    "answerKey": "B",
}
OBQA = {
    "id": "t-0",
    "question_stem": "The sun is responsible for",
    "choices": {"text": ["puppies", "plants"], "label": ["A", "B"]},
    "answerKey": "B",
}
PIQA = {"goal": "Dry a cup", "sol1": "Use a towel.", "sol2": "Use water.", "label": 0}
SIQA = {
    "context": "Tracy stayed.",
    "question": "Why?",
    "answerA": "to rest",
    "answerB": "to run",
    "answerC": "to sing",
    "label": "3",
}
GSM = {"question": "How many?", "answer": "2 * 600 = <<2*600=1200>>1,200\n#### 1,200"}
ARITH = {"question": "How many?", "final_ans": "39"}
MATH = {"problem": "Solve.", "solution": "Not \\boxed{1} but $\\boxed{\\frac{1}{2}}$."}
MMLU = {"question": "Which?", "subject": "law", "choices": ["w", "x", "y", "z"], "answer": 2}
ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": GSM,
    "multiarith": ARITH,
    "commonsense_qa": CSQA,
    "openbookqa": OBQA,
    "piqa": PIQA,
    "social_i_qa": SIQA,
    "math": MATH,
    "mmlu": MMLU,
    "word_problems": GSM,
    "word_problems_ood": GSM,
    "letter_choices": CSQA,
    "letter_choices_ood": CSQA,
}


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
    assert grade("The answer is Venice.", question) == ("right", "B")
    assert grade("The answer is (A).", question) == ("wrong", "A")
    assert grade("Both.", question) == ("unparseable", None)


# Which rows a run takes


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


# Local files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "gsm8k").mkdir()
    return tmp_path


def found(root: Path, part: Part = "train", name: str = "gsm8k") -> list[str]:
    return [path.name for path in files.find(root, REGISTRY[name], part)]


def check(path: Path, name: str = "gsm8k") -> None:
    files.check(path, REGISTRY[name], "train")


def test_files_are_found_in_all_forms(root: Path) -> None:
    (root / "gsm8k" / "test.jsonl").touch()
    assert found(root, "test") == ["test.jsonl"]
    (root / "gsm8k" / "train").mkdir()
    for name in ("b.parquet", "a.parquet", "notes.txt"):
        (root / "gsm8k" / "train" / name).touch()
    assert found(root) == ["a.parquet", "b.parquet"]
    (root / "openbookqa").mkdir()
    (root / "openbookqa" / "test.csv").touch()
    assert found(root, "test", "openbookqa") == ["test.csv"]
    (root / "openbookqa" / "validation.csv").touch()
    assert found(root, "test", "openbookqa") == ["validation.csv"]


def test_missing_files_say_what_is_there(root: Path) -> None:
    (root / "gsm8k" / "tests.parquet").touch()
    with pytest.raises(DataError, match=r"gsm8k, split test: no rows in .*holds tests.parquet"):
        found(root, "test")
    with pytest.raises(DataError, match=r"piqa, split train: .*no such folder"):
        found(root, "train", "piqa")
    (root / "gsm8k" / "train").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        found(root)
    (root / "gsm8k" / "train" / "a.csv").touch()
    (root / "gsm8k" / "train" / "a.jsonl").touch()
    with pytest.raises(DataError, match="files of several kinds"):
        found(root)


def write_all_kinds(folder: Path, given: list[dict[str, Any]]) -> Iterator[Path]:
    pq.write_table(pa.Table.from_pylist(given), folder / "rows.parquet")
    yield folder / "rows.parquet"
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    yield folder / "rows.jsonl"
    (folder / "rows.json").write_text(json.dumps(given, indent=1))
    yield folder / "rows.json"
    lines = [",".join(given[0]), *(",".join(f'"{v}"' for v in row.values()) for row in given)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    yield folder / "rows.csv"


def test_columns_are_checked_in_all_forms(root: Path) -> None:
    for path in write_all_kinds(root, [GSM, GSM]):
        check(path)
    for path in write_all_kinds(root, [{"question": "x", "solution": "y"}]):
        with pytest.raises(DataError, match=r"no column 'answer' \(it has question, solution\)"):
            check(path)


def test_empty_and_broken_files_are_named(root: Path) -> None:
    empty = pa.Table.from_pylist([], schema=pa.schema({"question": pa.string()}))
    pq.write_table(empty, root / "rows.parquet")
    (root / "rows.jsonl").write_text("\n")
    (root / "rows.json").write_text("[]")
    (root / "rows.csv").write_text("question,answer\n")
    for suffix in files.SUFFIXES:
        with pytest.raises(DataError, match=r"gsm8k, split train: .* has no rows"):
            check(root / f"rows{suffix}")
    (root / "rows.parquet").write_text("no parquet")
    (root / "rows.jsonl").write_text("{broken\n")
    (root / "rows.json").write_text("[1, 2]")
    (root / "rows.csv").write_bytes(b"\xff\xfe\x00")
    for suffix in files.SUFFIXES:
        with pytest.raises(DataError, match=r"gsm8k, split train: .* cannot be read"):
            check(root / f"rows{suffix}")


# Real and generated rows


def real(assets: Path, benchmark: Benchmark) -> Iterator[tuple[Part, list[dict[str, Any]]]]:
    for part in ("train", "test"):
        try:
            paths = files.find(assets / "data", benchmark, part)
        except DataError:
            continue
        yield part, [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("name", [n for n, b in REGISTRY.items() if isinstance(b.source, Hub)])
def test_every_real_row_is_a_question(assets: Path, name: str) -> None:
    benchmark, num_rows = REGISTRY[name], 0
    for part, given in real(assets, benchmark):
        converted = [rows.convert(benchmark, row) for row in given]
        questions, bad = rows.number(benchmark, part, converted)
        assert not bad, rows.bad_rows_message(name, part, "", bad, len(given))
        assert len({question.id for question in questions}) == len(given)
        num_rows += len(given)
    assert num_rows >= 500


@pytest.mark.parametrize(("name", "column"), [("gsm8k", "answer"), ("math", "solution")])
def test_gold_solutions_are_graded_right(assets: Path, name: str, column: str) -> None:
    benchmark = REGISTRY[name]
    for _, given in real(assets, benchmark):
        verdicts = Counter(
            benchmark.grade(row[column], benchmark.to_question(row, "x"))[0] for row in given
        )
        assert verdicts == {"right": len(given)}


@pytest.mark.parametrize("name", ["commonsense_qa", "openbookqa", "piqa", "social_i_qa", "mmlu"])
def test_every_dress_of_the_gold_option_is_right(assets: Path, name: str) -> None:
    """Naming the letter and the text is always right; so is the letter alone, in any dress."""
    benchmark = REGISTRY[name]
    for _, given in real(assets, benchmark):
        questions = [benchmark.to_question(row, "x") for row in given[:1000]]
        for dress in ("{0}", "({0})", "**{0}**", "The answer is {0}.", "Answer: {0}) {1}"):
            for question in questions:
                text = question.choices[ord(question.reference) - ord("A")]
                verdict, _ = benchmark.grade(dress.format(question.reference, text), question)
                assert verdict == "right", (dress, question)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_generated_rows_are_questions(name: str) -> None:
    benchmark = REGISTRY[name]
    converted = [rows.convert(benchmark, row) for row in tasks.rows(name, "train", 200, 3)]
    questions, bad = rows.number(benchmark, "train", converted)
    assert not bad
    assert {question.benchmark for question in questions} == {name}
