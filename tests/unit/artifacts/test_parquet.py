"""Records survive Parquet, and the ecosystem's libraries find their columns."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sirt_ray.artifacts import parquet
from sirt_ray.errors import DataError
from sirt_ray.types import Demonstration, PreferencePair, Question
from tests.helpers.fakes import graded

QUESTION = Question("q1", "q1", "How many?", ("two", "four"), "B")
GRADED = [graded("q1", 0), graded("q1", 1, verdict="unparseable", kind="plain")]
PAIR = PreferencePair("q1", "q1", "dpo_cot", "q1 cot", (1, 5), GRADED[0], GRADED[1])


def test_every_record_comes_back_as_it_went(tmp_path: Path) -> None:
    demonstration = Demonstration(
        Question("q1", "q1", "How many?", ("two", "four"), "4"), graded("q1", 0)
    )
    cases = [
        (QUESTION, parquet.question_row, parquet.to_question, parquet.QUESTION),
        (GRADED[1], parquet.graded_row, parquet.to_graded, parquet.GRADED),
        (demonstration, parquet.demonstration_row, parquet.to_demonstration, parquet.DEMONSTRATION),
        (PAIR, parquet.pair_row, parquet.to_pair, parquet.PAIR),
        (replace(PAIR, rejected=None), parquet.pair_row, parquet.to_pair, parquet.PAIR),
    ]
    for number, (record, to_row, from_row, schema) in enumerate(cases):
        path = tmp_path / f"{number}.parquet"
        parquet.write(path, [to_row(record)], schema)
        assert [from_row(row) for row in parquet.read(path)] == [record]


def test_the_columns_are_the_ecosystems(tmp_path: Path) -> None:
    parquet.write(tmp_path / "pairs.parquet", [parquet.pair_row(PAIR)], parquet.PAIR)
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
