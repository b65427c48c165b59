"""Local benchmark rows: `<root>/<benchmark>/<split>`, as a file or as a folder of files, of any
kind that `storage/row_files.py` reads."""

from pathlib import Path

from sirt_ray.benchmarks.base import Benchmark, Part
from sirt_ray.errors import DataError
from sirt_ray.storage import row_files


def find(root: Path, benchmark: Benchmark, part: Part) -> list[Path]:
    """Return the files of a split, in order. Raises DataError if there are none."""
    folder = root / benchmark.name
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    for name in benchmark.split_names(part):
        if of_split := [file for file in there if _is_file_of(file, name)]:
            return row_files.files(min(of_split, key=_preference))
        if (folder / name).is_dir():
            return row_files.files(folder / name)
    names = " or ".join(benchmark.split_names(part))
    what = "no such folder" if not folder.is_dir() else f"it contains {_listing(there)}"
    raise DataError(
        f"{benchmark.name}, split {part}: no rows in {folder} ({what}). Put a file {names}"
        f" ({', '.join(row_files.KINDS)}) there, or leave data.root out to load from the hub"
    )


def check(path: Path, benchmark: Benchmark, part: Part) -> None:
    """Check the first row of a file. Raises DataError if it cannot be read or lacks a column."""
    where = f"{benchmark.name}, split {part}"
    try:
        columns = row_files.columns(path)
    except DataError as error:
        raise DataError(
            f"{where}: {error}. Write the file again, or give it the right ending"
        ) from error
    if not columns:
        raise DataError(
            f"{where}: {path} has no rows, so there are no questions. Put"
            " rows there, or take the benchmark out of the job's data section"
        )
    missing = [column for column in benchmark.columns if column not in columns]
    if missing:
        raise DataError(
            f"{where}: {path} has no column {', '.join(map(repr, missing))}"
            f" (it has {', '.join(columns)}), which its questions are made of. Use the columns of"
            " the hub's data set"
        )


def location(path: Path, row: row_files.FileRow, only_file: bool) -> str:
    """Return where a row is, as in `train.jsonl:18` or `part-1.parquet, row 18`; nothing for a row
    without a line in the only file of its split, where its position says it."""
    if row.line:
        return f"{path.name}:{row.line}"
    return "" if only_file else f"{path.name}, row {row.number}"


def _is_file_of(file: Path, split: str) -> bool:
    """Return whether this is the file of a split, or a folder with such a name, as Spark writes
    one."""
    return bool(row_files.kind(file)) and row_files.stem(file) == split and file.exists()


def _preference(file: Path) -> tuple[int, bool]:
    """Return what to sort the files of one split by: the kind, and uncompressed ones first."""
    kind = str(row_files.kind(file))
    return row_files.KINDS.index(kind), file.suffix.lower() != kind


def _listing(there: list[Path]) -> str:
    names = [path.name for path in there]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more
