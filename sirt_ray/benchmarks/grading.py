"""Grading of a file of responses with the verifier.

The file is read row by row, so its size does not matter. A file with a bad row has no result: the
remaining rows are only searched for more bad ones.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from sirt_ray.benchmarks.base import Benchmark, Row, options
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.core import cells
from sirt_ray.errors import DataError, StageError
from sirt_ray.storage import row_files
from sirt_ray.storage.atomic import output, output_problem
from sirt_ray.storage.row_files import FileRow
from sirt_ray.types import LETTERS, Judgement, Question
from sirt_ray.verifier import numerals, statements

MOST_SHOWN = 10
"""Bad lines that an error lists; all are counted."""


def grade_file(name: str, file: Path, out: Path | None) -> Counter[str]:
    """Grade every row of `file`; write each with its judgement to `out`, which is created or
    written to only once all of it is there.

    Return how many are `right`, `wrong` and `unparseable`, and for how many the answer was
    `guessed` or the comparison `undecided`. Raises DataError with everything that is wrong with the
    arguments, or with the rows; StageError if the disk fails.
    """
    benchmark = _checked(name, file, out)
    counts: Counter[str] = Counter()
    bad: list[str] = []
    try:
        with output(out) if out else nullcontext() as written:
            for path, row in _rows(file):
                try:
                    response, question = _read(benchmark, row)
                except DataError as error:
                    where = f"line {row.line}" if row.line else row.where
                    bad.append(f"{where}: {error}" if path == file else f"{path}: {where}: {error}")
                    continue
                if not bad:
                    found = benchmark.grade(response, question)
                    _count(found, counts)
                    if written is not None:
                        written.write(_graded_row(row.values, found))
            if bad or not counts:
                raise DataError(_refusal(file, bad))
    except OSError as error:
        raise StageError(
            f"grading {file} has stopped: {error.strerror}. Nothing is written; free some space or"
            " repair the disk, then run the same command again"
        ) from error
    return counts


def _checked(name: str, file: Path, out: Path | None) -> Benchmark:
    problems: list[str] = []
    if name not in REGISTRY:
        problems.append(f"--benchmark {name}: there is none. Choose from {', '.join(REGISTRY)}")
    if not file.is_file() and not file.is_dir():
        problems.append(f"{file} is no file. Correct the path")
    elif not os.access(file, os.R_OK):
        problems.append(f"{file} may not be read. Change its permissions")
    if out and out.exists() and file.exists() and out.samefile(file):
        problems.append(f"--out {out} is the file of responses itself. Name another")
    elif out and (problem := output_problem(out)) is not None:
        problems.append(f"--out {out}: {problem}")
    if problems:
        raise DataError("\n".join(problems))
    return REGISTRY[name]


def _rows(file: Path) -> Iterator[tuple[Path, FileRow]]:
    """Yield the rows with their files; a file with another ending is taken for JSON lines."""
    for path in row_files.files(file):
        for row in row_files.read(path, default=".jsonl"):
            yield path, row


def _read(benchmark: Benchmark, row: FileRow) -> tuple[str, Question]:
    """Return the response of a row, and the question that it answers. Raises DataError with
    everything that is wrong with the row."""
    if row.problem:
        raise DataError(row.problem)
    problems: list[str] = []
    response = ""
    try:
        response = _response(row.values)
    except DataError as error:
        problems.append(str(error))
    try:
        labels, choices = _choices(row.values) if benchmark.kind == "choice" else (None, ())
        reference = _reference(benchmark, row.values, len(choices), labels)
    except DataError as error:
        raise DataError("; ".join([*problems, str(error)])) from None
    if problems:
        raise DataError("; ".join(problems))
    return response, Question("", benchmark.name, "", choices, reference)


def _response(row: Row) -> str:
    if "response" not in row:
        raise DataError('"response" is missing: the text that a model wrote')
    response = cells.content_of_chat(row["response"], "response", "assistant")
    if not isinstance(response, str):
        raise DataError(f'"response" is {cells.shown(response)} and not text')
    return response


def _choices(row: Row) -> tuple[list[str] | None, tuple[str, ...]]:
    """Return the labels of the options, if they have some, and their texts."""
    if row.get("choices") is None:
        raise DataError('"choices" is missing: the texts of the options, in order')
    labels, choices = options(row["choices"], "choices")
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f'"choices" has {len(choices)} options, not 2 to {len(LETTERS)}')
    return labels, tuple(choices)


def _reference(
    benchmark: Benchmark, row: Row, num_choices: int, labels: Sequence[str] | None
) -> str:
    """Return the gold answer in the verifier's notation, from that of the benchmark's rows."""
    if "reference" not in row:
        raise DataError('"reference" is missing: the gold answer')
    gold = row["reference"]
    if isinstance(gold, bool) or not cells.is_scalar(gold):
        raise DataError(f'"reference" is {cells.shown(gold)} and not text')
    reference = str(gold).strip()
    if benchmark.kind == "choice":
        return _letter(benchmark, reference, num_choices, labels)
    if benchmark.kind == "number":
        number = numerals.canonical(reference.rpartition("####")[2])
        if number is None:
            raise DataError(f'"reference" is {cells.shown(gold)} and not a number')
        return number
    boxes = [found.text.strip() for found in statements.find(reference) if found.mark == "boxed"]
    if not reference:
        raise DataError('"reference" is empty')
    return boxes[-1] if boxes else reference


def _letter(
    benchmark: Benchmark, label: str, num_choices: int, labels: Sequence[str] | None
) -> str:
    """Return the letter of the option with a label: one of the row's labels, or else one of the
    benchmark's, or a letter."""
    known = [LETTERS[:num_choices], benchmark.labels[:num_choices]]
    for names in known if labels is None else [[name.strip() for name in labels], *known]:
        for written in (label, label.upper()):
            if label and written in tuple(names):
                return LETTERS[names.index(written)]
    every = ", ".join(dict.fromkeys(itertools.chain(labels or (), *known)))
    raise DataError(f'"reference" is {cells.shown(label)} and none of the options\' labels {every}')


def _count(found: Judgement, counts: Counter[str]) -> None:
    counts[found.verdict] += 1
    counts["guessed"] += found.extracted is not None and not found.stated
    counts["undecided"] += found.undecided


def _graded_row(row: Row, found: Judgement) -> str:
    """Return a row with its judgement as a line of JSON. What JSON has no value for, as the date of
    a typed column, becomes text."""
    judgement = {
        "verdict": found.verdict,
        "extracted": found.extracted,
        "stated": found.stated,
        "undecided": found.undecided,
    }
    return json.dumps({**row, **judgement}, default=str) + "\n"


def _refusal(file: Path, bad: list[str]) -> str:
    if not bad:
        return f"{file} has no rows, so there is nothing to grade. Write one JSON record a line"
    more = [f"and {len(bad) - MOST_SHOWN:,} more"] if len(bad) > MOST_SHOWN else []
    shown = "\n  ".join([*bad[:MOST_SHOWN], *more])
    return f"{file}: {len(bad):,} lines cannot be graded. Fix them; nothing was graded:\n  {shown}"
