"""The questions of one sampling, on disk: the driver has positions in memory, never rows.

out/.asked/questions.parquet       row groups of 1024 questions, in order
"""

import itertools
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sirt_ray.artifacts import parquet
from sirt_ray.storage import object_store
from sirt_ray.storage.writing import replacing
from sirt_ray.types import Question

_ROWS_PER_GROUP = 1024


class QuestionFile:
    """A file of questions, read by position in the memory of a few row groups, however many there
    are.

    Example::

        QuestionFile.write(out, questions)
        QuestionFile(out).read(64, 32)       # questions 64 .. 95
    """

    def __init__(self, out: Path) -> None:
        self._path = _path(out)
        object_store.pull(self._path)
        self._group = lru_cache(maxsize=8)(self._read_group)

    @classmethod
    def write(cls, out: Path, questions: Iterable[Question]) -> int:
        """Write the file anew; return the number of questions."""
        path, total = _path(out), 0
        path.parent.mkdir(parents=True, exist_ok=True)
        remaining = iter(questions)
        with (
            replacing(path) as partial,
            pq.ParquetWriter(partial, parquet.QUESTION) as writer,
        ):
            while rows := list(itertools.islice(remaining, _ROWS_PER_GROUP)):
                table = pa.Table.from_pylist(
                    [parquet.to_row(question) for question in rows], schema=parquet.QUESTION
                )
                writer.write_table(table)
                total += len(rows)
        object_store.push(path)
        return total

    def read(self, first: int, count: int) -> list[Question]:
        """Return up to `count` questions from position `first` on; fewer at the end."""
        found: list[Question] = []
        groups = range(first // _ROWS_PER_GROUP, (first + count - 1) // _ROWS_PER_GROUP + 1)
        for at in groups:
            table = self._group(at)
            if table is None:
                break
            start = max(0, first - at * _ROWS_PER_GROUP)
            end = min(table.num_rows, first + count - at * _ROWS_PER_GROUP)
            rows = table.slice(start, max(0, end - start)).to_pylist()
            found += [parquet.from_row(Question, row) for row in rows]
        return found

    def _read_group(self, at: int) -> pa.Table | None:
        with pq.ParquetFile(self._path) as file:
            return file.read_row_group(at) if at < file.num_row_groups else None


def _path(out: Path) -> Path:
    return out / ".asked" / "questions.parquet"
