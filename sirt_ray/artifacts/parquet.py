"""Records <-> Parquet: a schema for each kind of record, in columns that the ecosystem knows.

Demonstrations have `prompt`/`completion` and pairs `prompt`/`chosen`/`rejected` as text, so that
`datasets`, TRL and LLaMA-Factory read the files as they are; token ids and provenance are in
further columns. A file is written under a temporary name and renamed once it is complete.

Each kind of record is a table of `(column, attribute path)`. The Arrow types come from the type
hints of the records; `to_row` and `from_row` both work by the table.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from sirt_ray.errors import DataError
from sirt_ray.storage.writing import replacing
from sirt_ray.types import Completion, Demonstration, Graded, PreferencePair, Question

_BATCH_ROWS = 1024
"""Rows that are in memory at a time while a file is read."""

Row = dict[str, Any]
Record = TypeVar("Record", Question, Graded, Demonstration, PreferencePair)

_Columns = Sequence[tuple[str, str]]
"""(column, path of the attribute) in the order of the file. A column that occurs several times is
written from the first of its attributes and fills all of them."""


def _same_names(record: type, prefix: str = "") -> _Columns:
    return [(field.name, prefix + field.name) for field in fields(record)]


_QUESTION: _Columns = _same_names(Question)
_GRADED: _Columns = [
    *(
        ("completion" if column == "text" else column, path)
        for column, path in _same_names(Completion, "completion.")
    ),
    ("verdict", "verdict"),
    ("extracted", "extracted"),
    ("reference", "reference"),
]
_DEMONSTRATION: _Columns = [
    *((column, f"graded.{path}") for column, path in _GRADED),
    ("question_id", "question.id"),
    ("benchmark", "question.benchmark"),
    ("question", "question.text"),
    ("choices", "question.choices"),
    ("reference", "question.reference"),
    ("instruction", "question.instruction"),
]
_SIDES = ("chosen", "rejected")
_SIDE: _Columns = [
    ("ids", "completion.completion_ids"),
    ("prompt_kind", "completion.prompt_kind"),
    ("sample_index", "completion.sample_index"),
    ("verdict", "verdict"),
    ("extracted", "extracted"),
    ("stop_reason", "completion.stop_reason"),
    ("seed", "completion.seed"),
    ("source_prompt", "completion.prompt"),
    ("source_prompt_ids", "completion.prompt_ids"),
]
"""What each side of a pair has for itself, with the side's name as prefix: `chosen_ids`, ..."""
_BOTH_SIDES: _Columns = [
    ("question_id", "completion.question_id"),
    ("benchmark", "completion.benchmark"),
    ("reference", "reference"),
    ("model_version", "completion.model_version"),
]
"""What the two sides of a pair have in common, from the chosen one."""
_PAIR: _Columns = [
    ("question_id", "question_id"),
    ("benchmark", "benchmark"),
    ("rule", "rule"),
    ("reference", "chosen.reference"),
    ("model_version", "chosen.completion.model_version"),
    ("prompt", "prompt"),
    ("prompt_ids", "prompt_ids"),
    *((side, f"{side}.completion.text") for side in _SIDES),
    *((f"{side}_{column}", f"{side}.{path}") for side in _SIDES for column, path in _SIDE),
    *((column, f"{side}.{path}") for side in _SIDES for column, path in _BOTH_SIDES),
]
_COLUMNS: dict[type, _Columns] = {
    Question: _QUESTION,
    Graded: _GRADED,
    Demonstration: _DEMONSTRATION,
    PreferencePair: _PAIR,
}
_NULL_WITHOUT = {"rejected": "rejected_ids"}
"""Of a record that may be None: the column that is null exactly where it is."""

_COUNTS = b"sirt_counts"


def _arrow_type(record: type, path: str) -> pa.DataType:
    """Return the column type of an attribute: 64 bits for seeds, 32 for token ids and indices."""
    first, _, rest = path.partition(".")
    hint = _without_none(get_type_hints(record)[first])
    if rest:
        return _arrow_type(hint, rest)
    if get_origin(hint) is tuple:
        return pa.list_(pa.int32() if get_args(hint)[0] is int else pa.string())
    if hint is int:
        return pa.int64() if first == "seed" else pa.int32()
    return pa.string()


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if type(None) in get_args(hint) else hint


def _written(record: type) -> dict[str, str]:
    """Return the columns in order, each with the path of the attribute that it is written from."""
    paths: dict[str, str] = {}
    for column, path in _COLUMNS[record]:
        paths.setdefault(column, path)
    return paths


def _schema(record: type) -> pa.Schema:
    return pa.schema({name: _arrow_type(record, path) for name, path in _written(record).items()})


QUESTION = _schema(Question)
GRADED = _schema(Graded)
DEMONSTRATION = _schema(Demonstration)
PAIR = _schema(PreferencePair)


def _reader(
    record: type, columns: Mapping[str, str], prefix: str = ""
) -> Callable[[Mapping[str, Any]], Any]:
    """Return the function that builds a record from a row. `columns`: attribute path -> column."""
    hints = get_type_hints(record)
    parts = [
        _field_reader(hints[field.name], field.default, columns, prefix + field.name)
        for field in fields(record)
    ]
    return lambda row: record(*[part(row) for part in parts])


def _field_reader(
    hint: Any, default: object, columns: Mapping[str, str], path: str
) -> Callable[[Mapping[str, Any]], Any]:
    kind = _without_none(hint)
    if is_dataclass(kind) and isinstance(kind, type):
        read_record = _reader(kind, columns, f"{path}.")
        if (key := _NULL_WITHOUT.get(path)) is None:
            return read_record
        return lambda row: None if row[key] is None else read_record(row)
    column = columns[path]
    if get_origin(kind) is tuple:
        return lambda row: tuple(row[column])
    if default is not MISSING:  # A file of an earlier version may be without the column.
        return lambda row: row.get(column, default)
    return lambda row: row[column]


_WRITERS = {
    record: [(column, path.split(".")) for column, path in _written(record).items()]
    for record in _COLUMNS
}
_READERS = {
    record: _reader(record, {path: column for column, path in columns})
    for record, columns in _COLUMNS.items()
}


def to_row(record: Question | Graded | Demonstration | PreferencePair) -> Row:
    """Return the record as a row of its schema: plain values and lists."""
    row: Row = {}
    for column, attributes in _WRITERS[type(record)]:
        value: Any = record
        for name in attributes:
            value = None if value is None else getattr(value, name)
        row[column] = list(value) if isinstance(value, tuple) else value
    return row


def from_row(kind: type[Record], row: Mapping[str, Any]) -> Record:
    """Return the record of a row. Raises KeyError for a row without a column of the schema."""
    return _READERS[kind](row)


def records(kind: type[Record], path: Path) -> Iterator[Record]:
    """Yield the records of a file or of a folder's files, in order, as `rows` reads them."""
    return map(_READERS[kind], rows(path))


def write(
    path: Path, rows: Iterable[Row], schema: pa.Schema, counts: Mapping[str, Any] | None = None
) -> None:
    """Write one file atomically. `counts` (what was made and dropped) go to the file's metadata."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    if counts is not None:
        table = table.replace_schema_metadata({_COUNTS: json.dumps(counts, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        pq.write_table(table, partial)


def files(path: Path) -> Sequence[Path]:
    """Return the Parquet files of an artifact, in order; the file itself where `path` is one."""
    return [path] if path.is_file() else sorted(path.glob("*.parquet"))


def rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a file or of a folder's files, in order, a batch of them in memory at a
    time. Read `columns` only, where they are named.

    Raises DataError where there is no file or one cannot be read.
    """
    found = files(path)
    if not found:
        raise DataError(f"no Parquet file in {path}. Was the folder moved or emptied by hand?")
    for file in found:
        for batch in _batches(file, columns, _BATCH_ROWS):
            yield from batch.to_pylist()


def rows_of_questions(
    path: Path, question_ids: Collection[str], columns: Sequence[str]
) -> Iterator[Row]:
    """Yield the rows of these questions from a folder of graded completions, in order, without
    turning the other rows into Python values."""
    for file in files(path):
        for batch in _batches(file, ["question_id", *columns]):
            for index, question_id in enumerate(batch.column("question_id").to_pylist()):
                if question_id in question_ids:
                    yield {name: batch.column(name)[index].as_py() for name in columns}


def _batches(
    file: Path, columns: Sequence[str] | None, batch_size: int = 65_536
) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file) as opened:
            yield from opened.iter_batches(batch_size=batch_size, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: Exception) -> DataError:
    """Return the error for a file that is no Parquet file or is damaged."""
    return DataError(
        f"{file} cannot be read: {error}. Move the artifact that it is part of away, and let"
        " `sirt run` build it again"
    )


def read(path: Path) -> list[Row]:
    """Return all rows of a file or of a folder's files, in order."""
    return list(rows(path))


def counts(path: Path) -> dict[str, Any]:
    """Return the counts that were written with one file."""
    metadata = pq.read_schema(path).metadata or {}
    return json.loads(metadata.get(_COUNTS, b"{}"))
