"""Grading of a file of responses with the verifier.

The file is read line by line, so its size does not matter. A file with a bad line has no result:
the remaining lines are only searched for more bad ones.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO, cast

from sirt_ray.benchmarks.base import Benchmark, Row, strings
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.errors import DataError, StageError
from sirt_ray.storage.atomic import output, output_problem
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
            for number, line in _lines(file):
                try:
                    row, question = _row(benchmark, line)
                except DataError as error:
                    bad.append(f"line {number}: {error}")
                    continue
                if not bad:
                    _grade(benchmark, row, question, counts, written)
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
    if not file.is_file():
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


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, numbered from 1."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line


def _row(benchmark: Benchmark, line: bytes) -> tuple[dict[str, Any], Question]:
    """Return the record of a line, and the question that its response answers. Raises DataError
    with everything that is wrong with the line."""
    row = _record(line)
    problems: list[str] = []
    if "response" not in row:
        problems.append('"response" is missing: the text that a model wrote')
    elif not isinstance(row["response"], str):
        problems.append(f'"response" is {_shown(row["response"])} and not text')
    try:
        choices = _choices(row) if benchmark.kind == "choice" else ()
        reference = _reference(benchmark, row, len(choices))
    except DataError as error:
        raise DataError("; ".join([*problems, str(error)])) from None
    if problems:
        raise DataError("; ".join(problems))
    return row, Question("", benchmark.name, "", choices, reference)


def _record(line: bytes) -> dict[str, Any]:
    try:
        row: object = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8. Write the file in that encoding") from error
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "it cannot be read"
        raise DataError(f"is no JSON ({reason}). Each line must be one record") from error
    if not isinstance(row, dict):
        raise DataError(f"is {_shown(row)} and not a record with a response and a reference")
    return cast("dict[str, Any]", row)


def _choices(row: Row) -> tuple[str, ...]:
    if row.get("choices") is None:
        raise DataError('"choices" is missing: the texts of the options, in order')
    choices = tuple(strings(row["choices"]))
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f'"choices" has {len(choices)} options, not 2 to {len(LETTERS)}')
    return choices


def _reference(benchmark: Benchmark, row: Row, num_choices: int) -> str:
    """Return the gold answer in the verifier's notation, from that of the benchmark's rows."""
    if "reference" not in row:
        raise DataError('"reference" is missing: the gold answer')
    gold = row["reference"]
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        raise DataError(f'"reference" is {_shown(gold)} and not text')
    reference = str(gold).strip()
    if benchmark.kind == "choice":
        return _letter(benchmark, reference, num_choices)
    if benchmark.kind == "number":
        number = numerals.canonical(reference.rpartition("####")[2])
        if number is None:
            raise DataError(f'"reference" is {_shown(gold)} and not a number')
        return number
    boxes = [found.text.strip() for found in statements.find(reference) if found.mark == "boxed"]
    if not reference:
        raise DataError('"reference" is empty')
    return boxes[-1] if boxes else reference


def _letter(benchmark: Benchmark, label: str, num_choices: int) -> str:
    """Return the letter of the option with a label: one of the benchmark's labels, or a letter."""
    for labels in (LETTERS, benchmark.labels):
        names = labels[:num_choices]
        if label and label.upper() in tuple(names):
            return LETTERS[names.index(label.upper())]
    known = ", ".join(dict.fromkeys((*LETTERS[:num_choices], *benchmark.labels[:num_choices])))
    raise DataError(f'"reference" is {_shown(label)} and none of the options\' labels {known}')


def _grade(
    benchmark: Benchmark,
    row: dict[str, Any],
    question: Question,
    counts: Counter[str],
    written: TextIO | None,
) -> None:
    found: Judgement = benchmark.grade(row["response"], question)
    counts[found.verdict] += 1
    counts["guessed"] += found.extracted is not None and not found.stated
    counts["undecided"] += found.undecided
    if written is not None:
        graded = {
            **row,
            "verdict": found.verdict,
            "extracted": found.extracted,
            "stated": found.stated,
            "undecided": found.undecided,
        }
        written.write(json.dumps(graded) + "\n")


def _refusal(file: Path, bad: list[str]) -> str:
    if not bad:
        return f"{file} has no rows, so there is nothing to grade. Write one JSON record a line"
    more = [f"and {len(bad) - MOST_SHOWN:,} more"] if len(bad) > MOST_SHOWN else []
    shown = "\n  ".join([*bad[:MOST_SHOWN], *more])
    return f"{file}: {len(bad):,} lines cannot be graded. Fix them; nothing was graded:\n  {shown}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
