"""Files of rows that users bring, read as written: a text stays the text that it is.

    .parquet .arrow .feather    columns with types
    .jsonl .ndjson .json        a record a line, records over several lines, or a list of records
                                (also as the one list of a record, as in {"data": [...]})
    .csv .tsv                   a header and texts; nothing is taken for a number, a date or null

Endings are known in any case; those of texts may be followed by .gz, .bz2, .zst or .lz4. A folder
is one of files of one kind, or one that `datasets` has saved.
"""

import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from sirt_ray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = (".parquet", ".jsonl", ".json", ".csv", ".ndjson", ".tsv", ".arrow", ".feather")
"""Kinds of files; the first is preferred where a split has several."""
_COMPRESSED = (".jsonl", ".json", ".csv", ".ndjson", ".tsv")
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What `save_to_disk` of `datasets` writes into the folder of a split, and above several."""
_PARQUET_MAGIC = b"PAR1"
_BATCH_ROWS = 1024
"""Rows of a file with typed columns that are in memory at a time."""
_SHOWN_CHARACTERS = 40
_BLANK = b" \t\r\n\xef\xbb\xbf"
"""Space, and the byte-order mark."""
_SPACE = re.compile(r"\s*")
_NO_RECORD = "is {} and not a record of columns"


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row of a file.

    Example::

        FileRow(2, 3, {"question": "How many?", "answer": "4"})
    """

    number: int
    """Counted from 1."""
    line: int | None
    """The line where it starts, from 1, in a text with a row in each line; else None."""
    values: Mapping[str, Any]
    problem: str = ""
    """Why it cannot be read as a row, if it cannot, as in `is no JSON`."""

    @property
    def where(self) -> str:
        """The row's location in the file, as in `row 2 (line 3)`."""
        line = "" if self.line in (None, self.number) else f" (line {self.line})"
        return f"row {self.number}{line}"


def kind(path: Path) -> str | None:
    """Return the kind of a file, one of `KINDS`; None if its name has no known ending."""
    return next((kind for kind, endings in _ENDINGS.items() if _ends_in(path, endings)), None)


def stem(path: Path) -> str:
    """Return the name of a file without its ending."""
    endings = itertools.chain.from_iterable(_ENDINGS.values())
    found = (ending for ending in endings if path.name.lower().endswith(ending))
    return path.name[: -len(next(found, "")) or None]


def files(path: Path) -> list[Path]:
    """Return the files of a folder, in order; the file itself where `path` is none. Raises
    DataError if there are none, or if they are of several kinds."""
    if not path.is_dir():
        return [path]
    if (path / _SAVED_SPLITS).is_file():
        raise DataError(
            f"{path} is a saved data set of several splits. Name the folder of one of them"
        )
    if (path / _SAVED).is_file():
        return _saved_files(path)
    found = sorted(file for file in path.iterdir() if kind(file) and file.name[0] != ".")
    kinds = sorted({str(kind(file)) for file in found})
    if len(kinds) != 1:
        what = f"files of several kinds ({', '.join(kinds)})" if kinds else "no files"
        raise DataError(
            f"{path} contains {what}. A folder of rows must contain files of one kind out of"
            f" {', '.join(KINDS)}"
        )
    return found


def columns(path: Path) -> Sequence[str]:
    """Return the names of the first row's columns; none if the file has no rows. Raises DataError
    if the first row cannot be read."""
    first = next(read(path), None)
    if first is None:
        return []
    if first.problem:
        raise DataError(f"{_unreadable(path)}: {unreadable(first)}")
    return list(first.values)


def unreadable(row: FileRow) -> str:
    """Return a row that cannot be read, and why, as in `line 3 is no JSON`."""
    return f"{f'line {row.line}' if row.line else row.where} {row.problem}"


def read(
    path: Path, only: Collection[str] | None = None, default: str | None = None
) -> Iterator[FileRow]:
    """Yield the rows of one file, in order, without holding all of a large one in memory (lists of
    JSON excepted).

    `only`: the columns that are needed of typed ones. `default`: the kind of a file whose name has
    no known ending, unless it is Parquet. A row that cannot be read has a `problem`. DataError,
    with the line where there is one, is raised if what follows cannot be read either.
    """
    try:
        of = kind(path) or (".parquet" if _is_parquet(path) else default)
        if of is None:
            raise DataError(
                f"{path} is none of {', '.join(KINDS)}. Write it as one of those, with its ending"
            )
        yield from _READERS[of](path, only)
    except DataError:
        raise
    # Those of pyarrow are ValueErrors, OSErrors or NotImplementedErrors, or KeyErrors.
    except (OSError, ValueError, NotImplementedError, KeyError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        first = (reason.splitlines() or [type(error).__name__])[0]
        what_to_do = (
            "Check that the file is complete"
            if kind(path)
            else f"Write it as one of {', '.join(KINDS)}, with its ending"
        )
        raise DataError(f"{_unreadable(path)}: {first.rstrip('.')}. {what_to_do}") from error


# JSON


def _json_rows(path: Path, only: Collection[str] | None) -> Iterator[FileRow]:
    with _opened(path) as stream:
        lines = ((line, text) for line, text in enumerate(stream, start=1) if text.strip(_BLANK))
        head = list(itertools.islice(lines, 2))
        if not _is_document(path, [text for _, text in head]):
            counted = itertools.count(1)
            for line, text in itertools.chain(head, lines):
                yield from _rows_of_line(counted, line, text)
            return
    for number, value in enumerate(_document(path), start=1):
        yield _row(number, None, value)


def _is_document(path: Path, head: Sequence[bytes]) -> bool:
    """Return whether a file is one list of records, or has records over several lines, by its first
    two lines that are not blank."""
    if not head:
        return False
    try:
        values = list(_values(head[0].decode("utf-8-sig").strip()))
    except json.JSONDecodeError as error:
        return error.doc[:1] in ("{", "[") and error.pos >= len(error.doc)
    except (ValueError, RecursionError):
        return False
    if len(head) > 1 or len(values) != 1:
        return False
    return isinstance(values[0], list) or _listed(path, values[0]) is not None


def _document(path: Path) -> Sequence[Any]:
    """Return the records of a JSON file that is read as a whole."""
    with _opened(path) as stream:
        content = stream.read()
    try:
        values = list(_values(content.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{_unreadable(path)}: line {line} is not UTF-8. Write it in that encoding"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{_unreadable(path)}: line {error.lineno} is no JSON ({_reason(error)})"
        ) from error
    if len(values) == 1:
        whole = values[0]
        return whole if isinstance(whole, list) else _listed(path, whole) or values
    return values


def _listed(path: Path, value: object) -> list[Any] | None:
    """Return the records of a file whose one value is a record with a list of them."""
    if not isinstance(value, dict):
        return None
    record = cast("dict[str, Any]", value)
    rows = record.get("data") if kind(path) == ".json" else None
    if len(record) == 1:
        (rows,) = record.values()
    if not isinstance(rows, list) or not rows:
        return None
    listed = cast("list[Any]", rows)
    return listed if all(isinstance(row, dict) for row in listed) else None


def _rows_of_line(counted: Iterator[int], line: int, content: bytes) -> Iterator[FileRow]:
    try:
        text = content.decode("utf-8-sig").rstrip()
        for value in _values(text):
            yield _row(next(counted), line, value)
    except UnicodeDecodeError:
        problem = "is not UTF-8. Write the file in that encoding"
    except _RepeatedKeyError as error:
        problem = str(error)
    except (ValueError, RecursionError) as error:
        is_json = isinstance(error, json.JSONDecodeError)
        why = _reason(error) if is_json else "it cannot be read"
        problem = f"is no JSON ({why}). Each line must be one record"
    else:
        return
    yield FileRow(next(counted), line, {}, problem)


def _values(text: str) -> Iterator[Any]:
    """Yield the JSON values of a text, which may have nothing but space between them."""
    decoder, at = json.JSONDecoder(object_pairs_hook=_record), 0
    while (at := cast("re.Match[str]", _SPACE.match(text, at)).end()) < len(text):
        value, at = decoder.raw_decode(text, at)
        yield value


class _RepeatedKeyError(ValueError):
    """A key that a record has twice: which value is meant is not known."""


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKeyError(f"has the key {twice!r} twice. Remove one")
    return record


def _row(number: int, line: int | None, value: object) -> FileRow:
    if isinstance(value, dict):
        return FileRow(number, line, cast("dict[str, Any]", value))
    return FileRow(number, line, {}, _NO_RECORD.format(_shown(value)))


def _reason(error: json.JSONDecodeError) -> str:
    cut = ", where it ends: it is cut off" if error.pos >= len(error.doc.rstrip()) else ""
    return f"{error.msg} at column {error.colno}{cut}"


# CSV


def _csv_rows(path: Path, only: Collection[str] | None, delimiter: str) -> Iterator[FileRow]:
    csv.field_size_limit(sys.maxsize)
    # A byte that is not UTF-8 becomes a lone surrogate, so that its row can be named.
    with io.TextIOWrapper(_opened(path), "utf-8-sig", "surrogateescape", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        rows = _numbered(path, reader)
        _, header = next(rows, (0, []))
        if wrong := _wrong_header(header):
            raise DataError(f"{_unreadable(path)}: the header {wrong}")
        for number, (line, cells) in enumerate(rows, start=1):
            yield FileRow(
                number, line, dict(zip(header, cells, strict=False)), _wrong_cells(header, cells)
            )


def _numbered(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank with the lines where they start."""
    while True:
        line = reader.line_num + 1
        try:
            cells: list[str] | None = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{_unreadable(path)}: the row that starts in line {line}: {error}."
                " Check its quotes: one within a quoted text is written twice"
            ) from error
        if cells is None:
            return
        if len(cells) > 1 or "".join(cells).strip():
            yield line, cells


def _wrong_header(header: Sequence[str]) -> str:
    twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    if twice:
        return f"has the column {twice[0]!r} twice"
    return "is not UTF-8. Write the file in that encoding" if not _is_utf8(header) else ""


def _wrong_cells(header: Sequence[str], cells: Sequence[str]) -> str:
    if len(cells) != len(header):
        return f"has {len(cells)} cells, and the header has {len(header)}"
    wrong = [name for name, cell in zip(header, cells, strict=True) if not _is_utf8([cell])]
    return f"is not UTF-8 in column {wrong[0]!r}. Write the file in that encoding" if wrong else ""


def _is_utf8(texts: Iterable[str]) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


# Parquet and Arrow


def _parquet_rows(path: Path, only: Collection[str] | None) -> Iterator[FileRow]:
    import pyarrow.parquet as pq

    with path.open("rb") as opened, pq.ParquetFile(opened) as file:
        names = _chosen(file.schema_arrow.names, only)
        yield from _typed_rows(file.iter_batches(batch_size=_BATCH_ROWS, columns=names))


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC


def _arrow_rows(path: Path, only: Collection[str] | None) -> Iterator[FileRow]:
    import pyarrow as pa

    with path.open("rb") as opened:
        try:
            file = pa.ipc.open_file(opened)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        except pa.ArrowInvalid:  # It is a stream, as `datasets` writes them.
            opened.seek(0)
            file = pa.ipc.open_stream(opened)
            batches = iter(file)
        names = _chosen(file.schema.names, only)
        yield from _typed_rows(
            part
            for batch in batches
            for at in range(0, batch.num_rows, _BATCH_ROWS)
            for part in [batch.select(names).slice(at, _BATCH_ROWS)]
        )


def _chosen(names: Sequence[str], only: Collection[str] | None) -> list[str]:
    return [name for name in names if only is None or name in only]


def _typed_rows(batches: "Iterable[pa.RecordBatch]") -> Iterator[FileRow]:
    number = itertools.count(1)
    for batch in batches:
        stored = [field for field in batch.schema if re.search("float|struct", str(field.type))]
        for values in _values_of(batch):
            if values is None:
                yield FileRow(next(number), None, {}, "has a text that is not UTF-8")
                continue
            written = {field.name: _written(values[field.name], field.type) for field in stored}
            yield FileRow(next(number), None, values | written)


def _values_of(batch: "pa.RecordBatch") -> list[dict[str, Any] | None]:
    """Return the rows as Python values; None for one with a text that is not UTF-8."""
    try:
        return cast("list[dict[str, Any] | None]", batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [None]
        halves = batch.slice(0, batch.num_rows // 2), batch.slice(batch.num_rows // 2)
        return [*_values_of(halves[0]), *_values_of(halves[1])]


def _written(value: Any, of: "pa.DataType") -> Any:
    """Return a value as its author wrote it, and not as a typed column stores it.

    A number of 16 or 32 bits is 0.1, and not 0.10000000149011612. A record is without the null
    fields at its end, which it has because others have them.
    """
    from pyarrow import types

    if value is None:
        return None
    if types.is_float16(of) or types.is_float32(of):
        return float(str(of.to_pandas_dtype()(value)))
    if types.is_list(of) or types.is_large_list(of) or types.is_fixed_size_list(of):
        return [_written(item, cast(Any, of).value_type) for item in value]
    if types.is_struct(of):
        fields = list(cast(Any, of))
        while fields and value[fields[-1].name] is None:
            fields.pop()
        return {field.name: _written(value[field.name], field.type) for field in fields}
    return value


def _saved_files(folder: Path) -> list[Path]:
    """Return the files of a split that `save_to_disk` has written, in their order."""
    try:
        state = json.loads((folder / _SAVED).read_text(encoding="utf-8"))
        return [folder / Path(file["filename"]).name for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / _SAVED} does not name the files of a saved data set. Save it again with"
            " `save_to_disk`"
        ) from error


# Names and bytes


def _opened(path: Path) -> BinaryIO:
    codec = _CODECS.get(path.suffix.lower())
    if codec is None:
        return path.open("rb")
    import pyarrow as pa

    return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(path.open("rb"), codec)))


def _ends_in(path: Path, endings: Iterable[str]) -> bool:
    return path.name.lower().endswith(tuple(endings))


def _unreadable(path: Path) -> str:
    of = kind(path)
    return f"{path} cannot be read{f' as {of[1:]}' if of else ''}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


_ENDINGS = {
    kind: (*(kind + codec for codec in _CODECS if kind in _COMPRESSED), kind) for kind in KINDS
}
_READERS: Mapping[str, Callable[[Path, Collection[str] | None], Iterator[FileRow]]] = {
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
    ".feather": _arrow_rows,
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".csv": partial(_csv_rows, delimiter=","),
    ".tsv": partial(_csv_rows, delimiter="\t"),
}
