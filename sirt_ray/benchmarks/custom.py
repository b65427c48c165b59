"""Custom benchmarks of a job: rows from files or from a function, graded by `verifier.answers` or
by a function.

Rows of the three kinds, with the columns' default names::

    {"question": "Tom has 3 coins and finds 4. How many coins has he?", "answer": 7}
    {"question": "Which is a fruit?", "choices": ["apple", "chair"], "answer": "A"}
    {"question": "Name a colour.", "answer": "red|green|blue"}

The second needs `choices: choices`, the third `kind: text` and a verifier.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import cast, get_args

from sirt_ray import user_code
from sirt_ray.benchmarks import algebra
from sirt_ray.benchmarks.base import (
    Benchmark,
    CustomSource,
    Part,
    Row,
    choice_question,
    open_question,
    strings,
    text_in,
)
from sirt_ray.config.custom import CustomBenchmarkConfig
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
        made.append({name: _plain(columns[name]) for name in needed})
    return made


def _plain(value: object) -> object:
    """Return a number as text: one column may contain integers and fractions."""
    return str(value) if isinstance(value, int | float) else value


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
    row: Row, question_id: str, benchmark: str, config: CustomBenchmarkConfig
) -> Question:
    text = text_in(row, config.question)
    gold = row.get(config.answer)
    if gold is None or not str(gold).strip():
        raise DataError(f"{config.answer!r} is empty, and it is the gold answer")
    if config.choices is not None:
        choices = [choice.strip() for choice in strings(row.get(config.choices))]
        question = choice_question(benchmark, question_id, text, choices, _letter(gold, choices))
    elif config.kind == "number":
        question = open_question(benchmark, question_id, text, gold)
    else:
        question = Question(question_id, benchmark, text, (), str(gold).strip())
    return replace(question, instruction=config.instruction)


def _letter(gold: object, choices: list[str]) -> str:
    """Return the letter of the right option, which `gold` names by its letter, text or position."""
    label = str(gold).strip()
    letters = LETTERS[: len(choices)]
    meant = {index for index, choice in enumerate(choices) if choice == label}
    meant |= {letters.index(label)} if len(label) == 1 and label in letters else set()
    meant |= {index for index in range(len(choices)) if str(index) == label}
    if len(meant) != 1:
        none = "is neither the letter, the text nor the position"
        problem = "may mean several" if meant else none
        raise DataError(f"the gold answer {label[:40]!r} {problem} of the {len(choices)} options")
    return LETTERS[meant.pop()]
