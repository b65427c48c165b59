"""Benchmark rows -> questions, with everything that is wrong with them in one error.

A row that cannot be used stops the run instead of being dropped: it means that the file is not the
expected one, and a silently smaller benchmark would make every score incomparable.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sirt_ray.artifacts import parquet
from sirt_ray.benchmarks.base import Benchmark, Part, Row
from sirt_ray.errors import DataError
from sirt_ray.types import Question

MOST_SHOWN = 5
"""Bad rows that an error names for each benchmark and split; all are counted."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used.

    Example::

        BadRow(17, "id 'train-17', train.jsonl:18", "'question_stem' is empty")
    """

    position: int
    """Counted from 0 over all files of the split."""
    label: str
    """The name that the row has in the file, and its place there; empty without them."""
    reason: str

    def __str__(self) -> str:
        label = f" ({self.label})" if self.label else ""
        return f"row {self.position}{label}: {self.reason}"


def convert(
    benchmark: Benchmark, row: Row, location: str = "", problem: str = ""
) -> dict[str, Any]:
    """Return a row as a question without an id, or with the `reason` why it is none: the `problem`
    of one that cannot be read. A shard of rows does not know its position in the split; `number`
    assigns the ids. `location`: that in the file, if there is one."""
    named = [f"id {row['id']!r}"] if "id" in row else []
    label = ", ".join([*named, *filter(None, [location])])
    question = Question("", benchmark.name, "", (), "")
    if not problem:
        try:
            question = benchmark.to_question(row, "")
        except DataError as error:
            problem = str(error)
    return parquet.to_row(question) | {"label": label, "reason": problem}


def number(
    benchmark: Benchmark, part: Part, converted: Iterable[Mapping[str, Any]]
) -> tuple[list[Question], list[BadRow]]:
    """Return the questions of a split's converted rows, which are in order, with the ids
    `<benchmark>/<part>/<position>`, and the bad rows."""
    questions: list[Question] = []
    bad: list[BadRow] = []
    for position, row in enumerate(converted):
        if row["reason"]:
            bad.append(BadRow(position, row["label"], row["reason"]))
        else:
            question_id = f"{benchmark.name}/{part}/{position}"
            questions.append(parquet.from_row(Question, {**row, "id": question_id}))
    return questions, bad


def bad_rows_message(
    benchmark: str, part: Part, where: str, bad: Sequence[BadRow], num_rows: int
) -> str:
    """Return the error text for a split with rows that cannot be used."""
    lines = [f"  {row}" for row in bad[:MOST_SHOWN]]
    if len(bad) > MOST_SHOWN:
        lines.append(f"  and {len(bad) - MOST_SHOWN} more")
    return "\n".join(
        [
            f"{benchmark}, split {part} ({where}): {len(bad)} of {num_rows} rows cannot be used:",
            *lines,
            "  Fix or remove these rows; a benchmark with rows left out would not be comparable.",
        ]
    )


def empty_message(benchmark: str, part: Part, where: str) -> str:
    """Return the error text for a split without rows."""
    return (
        f"{benchmark}, split {part} ({where}): there are no rows, so there are no questions."
        " Put the rows there, or take the benchmark out of the job's data section"
    )


def raise_all(problems: Iterable[str]) -> None:
    """Raise one DataError for all problems, if there are any."""
    found = list(problems)
    if found:
        raise DataError("\n".join(found))
