"""Records survive Parquet, and the ecosystem's libraries find their columns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sirt_ray.artifacts import parquet
from sirt_ray.errors import DataError
from sirt_ray.types import Demonstration, Graded, PreferencePair, Question
from tests.helpers.fakes import graded
from tests.helpers.paths import TESTS

QUESTION = Question("q1", "q1", "How many?", ("two", "four"), "B")
GRADED = [graded("q1", 0), graded("q1", 1, verdict="unparseable", kind="plain")]
PAIR = PreferencePair("q1", "q1", "dpo_cot", "q1 cot", (1, 5), GRADED[0], GRADED[1])


def test_every_record_comes_back_as_it_went(tmp_path: Path) -> None:
    demonstration = Demonstration(
        Question("q1", "q1", "How many?", ("two", "four"), "4"), graded("q1", 0)
    )
    pair_without_rejected = replace(PAIR, rejected=None)
    cases: list[tuple[Any, pa.Schema]] = [
        (QUESTION, parquet.QUESTION),
        (GRADED[1], parquet.GRADED),
        (demonstration, parquet.DEMONSTRATION),
        (PAIR, parquet.PAIR),
        (pair_without_rejected, parquet.PAIR),
    ]
    for number, (record, schema) in enumerate(cases):
        path = tmp_path / f"{number}.parquet"
        parquet.write(path, [parquet.to_row(record)], schema)
        assert list(parquet.records(type(record), path)) == [record]


def test_columns_types_and_order_stay_those_of_stored_runs(tmp_path: Path) -> None:
    """The golden file has the schemas of the first version: other programs read these files, and a
    run of an earlier version is resumed."""
    records: dict[str, tuple[Any, pa.Schema]] = {
        "question": (QUESTION, parquet.QUESTION),
        "graded": (GRADED[0], parquet.GRADED),
        "demonstration": (
            Demonstration(replace(QUESTION, reference="4"), GRADED[0]),
            parquet.DEMONSTRATION,
        ),
        "pair": (PAIR, parquet.PAIR),
    }
    lines: list[str] = []
    for name, (record, schema) in records.items():
        path = tmp_path / f"{name}.parquet"
        parquet.write(path, [parquet.to_row(record)], schema, {"rows": 1})
        written = pq.read_schema(path)
        assert written.metadata == {b"sirt_counts": b'{"rows": 1}'}
        lines += [f"== {name} ==", *(f"{field.name}: {field.type}" for field in written)]
    golden = TESTS / "golden" / "parquet_schemas.txt"
    assert lines == golden.read_text().splitlines()


def test_a_question_of_a_file_without_instructions_has_none(tmp_path: Path) -> None:
    row = parquet.to_row(replace(QUESTION, instruction="Answer in one word."))
    del row["instruction"]
    schema = parquet.QUESTION.remove(parquet.QUESTION.get_field_index("instruction"))
    parquet.write(tmp_path / "old.parquet", [row], schema)
    assert list(parquet.records(Question, tmp_path / "old.parquet")) == [QUESTION]


def test_rows_of_questions_are_read_in_order_and_without_the_others(tmp_path: Path) -> None:
    rows = [parquet.to_row(graded(f"q{number % 3}", number)) for number in range(6)]
    parquet.write(tmp_path / "part.parquet", rows, parquet.GRADED)
    found = parquet.rows_of_questions(tmp_path, {"q1", "q2"}, ["sample_index"])
    assert [row["sample_index"] for row in found] == [1, 2, 4, 5]


def test_a_file_that_is_no_parquet_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "part.parquet").write_text("no Parquet")
    with pytest.raises(DataError, match=r"part\.parquet cannot be read: .*build it again"):
        next(parquet.records(Graded, tmp_path))


def test_the_columns_are_the_ecosystems(tmp_path: Path) -> None:
    parquet.write(tmp_path / "pairs.parquet", [parquet.to_row(PAIR)], parquet.PAIR)
    row = pq.read_table(tmp_path / "pairs.parquet").to_pylist()[0]
    assert (row["prompt"], row["chosen"], row["rejected"]) == (
        "q1 cot",
        GRADED[0].completion.text,
        GRADED[1].completion.text,
    )
    assert {"prompt", "completion"} <= set(parquet.DEMONSTRATION.names)


def test_counts_travel_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    parquet.write(path, [], parquet.GRADED, {"questions": 3, "dropped": {"too_long": 1}})
    assert parquet.counts(path) == {"questions": 3, "dropped": {"too_long": 1}}
    assert parquet.read(path) == []


def test_an_empty_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        parquet.read(tmp_path)


def test_a_broken_write_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    with pytest.raises(pa.ArrowInvalid):
        parquet.write(path, [{"sample_index": "no number"}], parquet.GRADED)
    assert not path.exists()
