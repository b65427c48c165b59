"""Local benchmark rows: `<root>/<benchmark>/<split>.parquet|.jsonl|.json|.csv`, or a folder
`<split>/` with several such files. `.json` may contain one list or one record per line."""

import csv
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs] - it ships none

from sirt_ray.benchmarks.base import Benchmark, Part
from sirt_ray.errors import DataError

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")


def find(root: Path, benchmark: Benchmark, part: Part) -> list[Path]:
    """Return the files of a split, in order. Raises DataError if there are none."""
    folder = root / benchmark.name
    for name in benchmark.split_names(part):
        for suffix in SUFFIXES:
            if (file := folder / f"{name}{suffix}").is_file():
                return [file]
        if (folder / name).is_dir():
            return _in_folder(folder / name)
    names = " or ".join(benchmark.split_names(part))
    what = "no such folder" if not folder.is_dir() else f"it contains {_listing(folder)}"
    raise DataError(
        f"{benchmark.name}, split {part}: no rows in {folder} ({what}). Put a file {names}"
        f" ({', '.join(SUFFIXES)}) there, or leave data.root out to load from the hub"
    )


def check(path: Path, benchmark: Benchmark, part: Part) -> None:
    """Check the first rows of a file. Raises DataError if it cannot be read or lacks a column."""
    try:
        columns = read_columns(path)
    except (OSError, ValueError) as error:  # pyarrow's errors and JSON's are ValueErrors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{benchmark.name}, split {part}: {path} cannot be read as {path.suffix[1:]}: {reason}."
            " Write the file again, or give it the right ending"
        ) from error
    if not columns:
        raise DataError(
            f"{benchmark.name}, split {part}: {path} has no rows, so there are no questions. Put"
            " rows there, or take the benchmark out of the job's data section"
        )
    missing = [column for column in benchmark.columns if column not in columns]
    if missing:
        raise DataError(
            f"{benchmark.name}, split {part}: {path} has no column {', '.join(map(repr, missing))}"
            f" (it has {', '.join(columns)}), which its questions are made of. Use the columns of"
            " the hub's data set"
        )


def read_columns(path: Path) -> Sequence[str]:
    """Return the names of the columns; none if the file has no rows."""
    if path.suffix == ".parquet":
        file = cast(Any, pq.ParquetFile(path))
        return list(file.schema_arrow.names) if file.metadata.num_rows else []
    with path.open(encoding="utf-8", newline="") as lines:
        if path.suffix == ".csv":
            header_and_row = list(itertools.islice(csv.reader(lines), 2))
            return header_and_row[0] if len(header_and_row) == 2 else []
        first = next((line for line in lines if line.strip()), "")
    if not first:
        return []
    if first.lstrip().startswith("["):
        rows: list[Any] = json.loads(path.read_text(encoding="utf-8"))
        record: Any = rows[0] if rows else {}
    else:
        record = json.loads(first)
    if not isinstance(record, dict):
        raise ValueError("the first row is not a record of columns")
    return list(cast(dict[str, Any], record))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return all rows of one file. Raises DataError if it cannot be read, or one of them is no
    row."""
    try:
        if path.suffix == ".parquet":
            return cast(Any, pq.ParquetFile(path)).read().to_pylist()
        with path.open(encoding="utf-8", newline="") as lines:
            if path.suffix == ".csv":
                return list(csv.DictReader(lines))
            records = _records(lines.read())
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's and JSON's are ValueErrors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from error
    for number, record in records:
        if not isinstance(record, dict):
            raise DataError(f"{path}, row {number}: {str(record)[:40]} is no record of columns")
    return [cast("dict[str, Any]", record) for _, record in records]


def _records(text: str) -> list[tuple[int, Any]]:
    """Return the items of a list, or of the lines that are not blank, numbered from 1."""
    if text.lstrip().startswith("["):
        listed: list[Any] = json.loads(text)
        return list(enumerate(listed, start=1))
    lines = enumerate(text.split("\n"), start=1)
    return [(number, json.loads(line)) for number, line in lines if line.strip()]


def _in_folder(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    suffixes = {path.suffix for path in files}
    if len(suffixes) != 1:
        found = f"files of several kinds ({', '.join(sorted(suffixes))})" if files else "no files"
        raise DataError(
            f"{folder} contains {found}. A split's folder must contain files of one kind out of"
            f" {', '.join(SUFFIXES)}"
        )
    return files


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more
