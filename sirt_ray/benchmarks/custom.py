"""Custom benchmarks of a job: rows from files or from a function, graded by `verifier.answers` or
by a function.

Rows of the three kinds, with the columns' default names::

    {"question": "Tom has 3 coins and finds 4. How many coins has he?", "answer": 7}
    {"question": "Which is a fruit?", "choices": ["apple", "chair"], "answer": "A"}
    {"question": "Name a colour.", "answer": "red|green|blue"}

The second needs `choices: choices`, the third `kind: text` and a verifier.
"""

import numbers
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast, get_args

from sirt_ray import user_code
from sirt_ray.benchmarks import algebra
from sirt_ray.benchmarks.base import (
    Benchmark,
    CustomSource,
    Part,
    Positions,
    Row,
    choice_question,
    open_question,
    options,
    ordered_labels,
    text_in,
)
from sirt_ray.config.custom import CustomBenchmarkConfig
from sirt_ray.core import cells
from sirt_ray.errors import DataError
from sirt_ray.types import LETTERS, Judgement, Question, Verdict
from sirt_ray.user_code import UserFunction

_SHOWN_CHARACTERS = 80
_VERDICTS = get_args(Verdict)
_WANTED = (
    "a Judgement whose verdict is right, wrong or unparseable, with the answer that was found as"
    " text, or None where the verdict is unparseable"
)


def custom_benchmark(name: str, config: CustomBenchmarkConfig) -> Benchmark:
    """Return the benchmark that a job describes. Raises ConfigError if a file or a function that it
    names does not exist."""
    verifier = None if config.verifier is None else user_code.read(config.verifier)
    columns = [config.question, config.answer]
    columns += [] if config.choices is None else [config.choices]
    kind = "choice" if config.choices is not None else config.kind
    return Benchmark(
        name=name,
        version=1,
        kind="expression" if kind == "text" else kind,
        source=CustomSource(
            None if config.rows is None else user_code.read(config.rows), config.identity
        ),
        columns=tuple(columns),
        to_question=partial(_to_question, benchmark=name, config=config),
        positions=None
        if config.choices is None
        else Positions(
            partial(_position, config=config),
            partial(_to_question, benchmark=name, config=config, first=1),
        ),
        judge=None if verifier is None else partial(grade_with_user_code, verifier),
        equivalent=algebra.equivalent if kind == "expression" else None,
    )


def made_rows(benchmark: Benchmark, part: Part) -> list[dict[str, object]]:
    """Return the rows that the user's function makes for a split, with the needed columns. Raises
    StageError if it fails, DataError if one is no row or lacks a column."""
    source = benchmark.source
    assert isinstance(source, CustomSource) and source.rows is not None
    code, needed = source.rows, benchmark.columns
    made: list[dict[str, object]] = []
    rows: list[object] = code.call(part, about=f"split {part}", listed=True)
    for number, row in enumerate(rows):
        is_row = isinstance(row, Mapping)
        columns = cast("Mapping[str, object]", row) if is_row else dict[str, object]()
        missing = [name for name in needed if name not in columns]
        if missing:
            raise DataError(
                f"{benchmark.name}, split {part} ({code.reference}): row {number} is"
                f" {repr(row)[:_SHOWN_CHARACTERS]} and has no"
                f" {', '.join(map(repr, missing))}. Make it a dict with {', '.join(needed)}, or"
                f" name its columns under data.benchmarks.{benchmark.name}"
            )
        try:
            made.append({name: _plain(columns[name], name) for name in needed})
        except ValueError as error:  # A number of thousands of digits is one, too.
            raise DataError(
                f"{benchmark.name}, split {part} ({code.reference}): row {number}: {error}"
            ) from error
    return made


def _plain(value: object, column: str) -> object:
    """Return a value of a made row as one that a column of a table takes, whatever the other rows
    have: a number as text, NaN as null, a record of options as its labels and texts. Raises
    DataError for a text that UTF-8 cannot encode."""
    if cells.is_missing(value):
        return None
    if isinstance(value, str | numbers.Number):
        return cells.encodable(str(value), column)
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        return [_plain(item, column) if cells.is_scalar(item) else item for item in items]
    if not isinstance(value, Mapping):
        return value
    record = cast("Mapping[str, object]", value)
    if set(record) >= {"label", "text"}:
        return record
    labels = ordered_labels(record)
    return {"label": labels, "text": _plain([record[label] for label in labels], column)}


def no_rows_message(name: str, part: Part) -> str:
    """Return the error text for a custom benchmark with neither files nor a function."""
    return (
        f"data.benchmarks.{name}: it has no rows. Set data.root to the folder that has"
        f" {name}/{part}.jsonl (or .parquet, .csv), or rows to a function that makes them, as in"
        " my_task.py:rows"
    )


def grade_with_user_code(code: UserFunction, text: str, question: Question) -> Judgement:
    """Return the judgement of a custom verifier. Raises StageError if it fails or returns anything
    else."""
    about = f"question {question.id}"
    found: object = code.call(text, question, about=about)
    if not isinstance(found, Judgement) or not _consistent(found):
        raise code.wrong(found, about, _WANTED)
    return found


def _consistent(found: Judgement) -> bool:
    answer = cast(object, found.extracted)
    flags = (cast(object, found.stated), cast(object, found.undecided))
    return (
        found.verdict in _VERDICTS
        and (answer is None if found.verdict == "unparseable" else isinstance(answer, str))
        and all(isinstance(flag, bool) for flag in flags)
    )


def _to_question(
    row: Row, question_id: str, benchmark: str, config: CustomBenchmarkConfig, first: int = 0
) -> Question:
    """Return the question of a row. `first`: the number of the first option, where gold answers are
    numbers of options."""
    text = text_in(row, config.question)
    gold = cells.scalar(row.get(config.answer), config.answer)
    if config.choices is not None:
        labels, choices = options(row.get(config.choices), config.choices)
        right = _right_option(gold, labels, choices, first)
        every = range(len(choices))
        question = choice_question(benchmark, question_id, text, choices, right, every)
    elif config.kind == "number":
        question = open_question(benchmark, question_id, text, gold)
    else:
        question = Question(question_id, benchmark, text, (), gold)
    return replace(question, instruction=config.instruction)


def _right_option(
    gold: str, labels: Sequence[str] | None, choices: Sequence[str], first: int
) -> int:
    """Return the index of the right option, which `gold` names by its label, text or number."""
    meant = _named(gold, labels, choices)
    # Options with labels need no numbers.
    if not (labels and meant):
        meant |= {index for index in range(len(choices)) if str(index + first) == gold}
    if len(meant) != 1:
        none = f"is neither the {'label' if labels else 'letter'}, the text nor the position"
        problem = "may mean several" if meant else none
        raise DataError(f"the gold answer {gold[:40]!r} {problem} of the {len(choices)} options")
    return meant.pop()


def _named(gold: str, labels: Sequence[str] | None, choices: Sequence[str]) -> set[int]:
    """Return the indices of the options with this label, the letter where there is none, or with
    this text."""
    names = LETTERS[: len(choices)] if labels is None else labels
    of_label = {index for index, label in enumerate(names) if label.strip() == gold}
    return of_label | {index for index, choice in enumerate(choices) if choice.strip() == gold}


def _position(row: Row, config: CustomBenchmarkConfig) -> tuple[int, int] | None:
    """Return a gold answer that is the number of an option, and how many options there are; None
    for another, and for a row that is no question."""
    assert config.choices is not None
    try:
        gold = cells.scalar(row.get(config.answer), config.answer)
        labels, choices = options(row.get(config.choices), config.choices)
    except DataError:
        return None
    numbers = [str(number) for number in range(len(choices) + 1)]
    if gold not in numbers or _named(gold, labels, choices):
        return None
    return numbers.index(gold), len(choices)


def counted(
    benchmark: Benchmark, part: Part, where: str, found: Collection[tuple[int, int]]
) -> Benchmark:
    """Return the benchmark with options counted from where the gold answers of a split count them.
    `found`: those that are numbers, each with how many options there are.

    Raises DataError if neither 0 nor the number of options is among them: to take one for the other
    would make every answer wrong.
    """
    source, positions = benchmark.source, benchmark.positions
    assert isinstance(source, CustomSource) and positions is not None
    if not found or any(number == 0 for number, _ in found):
        return benchmark
    if any(number == count for number, count in found):
        return replace(benchmark, to_question=positions.to_question_from_1)
    seen = ", ".join(map(str, sorted({number for number, _ in found})))
    raise DataError(
        f"{benchmark.name}, split {part} ({where}): the gold answers are numbers of options"
        f" ({seen}), but neither 0 nor the number of the last option is among them, so they may be"
        " counted from 0 or from 1. Write the letters of the options, or their texts"
    )
