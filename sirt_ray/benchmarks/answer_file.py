"""A user's file of answers -> graded completions of the run's questions.

    row --id, else text--> question --verifier--> Graded

Every row is counted by its outcome. The answers are graded like those of a teacher, whoever wrote
them.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sirt_ray.benchmarks import files
from sirt_ray.benchmarks.base import Row
from sirt_ray.benchmarks.registry import grade
from sirt_ray.benchmarks.selection import normalised
from sirt_ray.config.teacher import DemonstrationFileConfig
from sirt_ray.core import prompts
from sirt_ray.errors import DataError
from sirt_ray.storage.hashing import content_key
from sirt_ray.types import Completion, Graded, Judgement, Question

_WHOLE_FILE = 1 << 62
_SHOWN_CHARACTERS = 80
_ROW_OUTCOMES = ("matched", "unmatched_rows", "held_out_rows", "ambiguous_rows", "duplicate_rows")
_ANSWER_OUTCOMES = ("empty", "right", "wrong", "unparseable")
"""Outcomes of the rows that are matched."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of a file to the run's questions."""

    graded: list[Graded]
    """In the order of the file. Several answers to a question are numbered as its samples."""
    counts: dict[str, int]
    """`rows` is the sum of `_ROW_OUTCOMES`, and `matched` of `_ANSWER_OUTCOMES`."""


class _Index:
    """Questions by their ids and by every form in which a file may have their text."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._by_id: dict[str, Question] = {}
        self._by_text: dict[str, dict[str, Question]] = {}
        for question in questions:
            self._by_id[question.id] = question
            for text in _texts(question):
                self._by_text.setdefault(normalised(text), {})[question.id] = question

    def find(self, row: Row, config: DemonstrationFileConfig) -> list[Question]:
        """Return the questions that a row may answer. An id counts only if the row has no text, or
        that of this question: the file may belong to other rows."""
        text, benchmark = row.get(config.question_column), row.get(config.benchmark_column)
        same_text = self._by_text.get(normalised(str(text)), {}) if _is_set(text) else {}
        by_id = self._by_id.get(str(row.get(config.question_id_column)))
        if by_id is not None and (not _is_set(text) or by_id.id in same_text):
            return [by_id]
        return [
            question
            for question in same_text.values()
            if not _is_set(benchmark) or question.benchmark == str(benchmark)
        ]


def read_answers(
    config: DemonstrationFileConfig,
    questions: Sequence[Question],
    held_out: Sequence[Question],
    judge: Callable[[str, Question], Judgement] = grade,
) -> Answers:
    """Return the file's answers to the `questions`; those to `held_out` ones are only counted.

    Raises DataError if the file cannot be read or answers none of the questions.
    """
    path = Path(config.path).expanduser()
    rows = files.read_rows(path)
    index, others = _Index(questions), _Index(held_out)
    counts = dict.fromkeys(_ROW_OUTCOMES + _ANSWER_OUTCOMES, 0)
    graded: list[Graded] = []
    taken: dict[str, list[str]] = {}
    for row in rows:
        found = index.find(row, config)
        text = _text(row.get(config.completion_column))
        if len(found) != 1:
            unmatched = "held_out_rows" if others.find(row, config) else "unmatched_rows"
            counts["ambiguous_rows" if found else unmatched] += 1
            continue
        before = taken.setdefault(found[0].id, [])
        if text in before:
            counts["duplicate_rows"] += 1
            continue
        counts["matched"] += 1
        answer = _graded(found[0], text, len(before), judge)
        counts[answer.verdict if text.strip() else "empty"] += 1
        before.append(text)
        graded.append(answer)
    if not graded:
        raise DataError(_nothing_found(config, rows, questions))
    return Answers(graded, {"rows": len(rows), **counts})


def check(config: DemonstrationFileConfig) -> None:
    """Check the file by its first row. Raises DataError with everything that is wrong with it."""
    path = Path(config.path).expanduser()
    where = f"teacher.demonstrations.path: {path}"
    if path.suffix not in files.SUFFIXES:
        raise DataError(f"{where} is none of {', '.join(files.SUFFIXES)}. Write it as one of those")
    if not path.is_file():
        raise DataError(
            f"{where} is no file. Correct the path; it is read on the machine where `sirt` runs"
        )
    try:
        columns = files.read_columns(path)
    except (OSError, ValueError) as error:  # pyarrow's errors and JSON's are ValueErrors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{where} cannot be read as {path.suffix[1:]}: {reason}") from error
    if not columns:
        raise DataError(f"{where} has no rows, so nothing can be learned from it")
    problems: list[str] = []
    if config.completion_column not in columns:
        problems.append(
            f"no column {config.completion_column!r} with the answers (set completion_column)"
        )
    if config.question_id_column not in columns and config.question_column not in columns:
        problems.append(
            f"neither a column {config.question_id_column!r} (set question_id_column) nor"
            f" {config.question_column!r} (set question_column), which name the question that is"
            " answered"
        )
    if problems:
        raise DataError(f"{where} has {', and '.join(problems)}. It has {', '.join(columns)}")


def identity(config: DemonstrationFileConfig) -> str:
    """Return the fingerprint of the file's content and columns, independent of its path."""
    columns = json.dumps(config.columns, sort_keys=True)
    path = Path(config.path).expanduser()
    return f"demonstrations:{content_key(path, sampled_above_bytes=_WHOLE_FILE)}{columns}"


def _graded(
    question: Question,
    text: str,
    sample_index: int,
    judge: Callable[[str, Question], Judgement],
) -> Graded:
    completion = Completion(
        question_id=question.id,
        benchmark=question.benchmark,
        prompt_kind="cot",
        sample_index=sample_index,
        prompt=prompts.render(question, "cot"),
        text=text,
        prompt_ids=(),
        completion_ids=(),
        stop_reason="stop",
        model_version="teacher",
        seed=0,
    )
    found = judge(text, question)
    return Graded(completion, found.verdict, found.extracted, question.reference)


def _texts(question: Question) -> list[str]:
    rendered = [
        form(question, kind)
        for form in (prompts.render, prompts.chat_message)
        for kind in ("cot", "plain")
    ]
    return [question.text, *rendered]


def _is_set(value: object) -> bool:
    return value is not None and str(value).strip() != ""


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _nothing_found(
    config: DemonstrationFileConfig, rows: Sequence[Row], questions: Sequence[Question]
) -> str:
    first: Row = rows[0] if rows else {}
    names = (config.question_id_column, config.question_column, config.benchmark_column)
    shown = {name: str(first[name])[:_SHOWN_CHARACTERS] for name in names if name in first}
    question = questions[0]
    return (
        f"none of the {len(rows)} rows of {config.path} answers one of the {len(questions)}"
        f" training questions. Its first row has {json.dumps(shown)}; the first question is"
        f" {json.dumps(question.id)} with the text"
        f" {json.dumps(question.text[:_SHOWN_CHARACTERS])}. Name the right columns under"
        " teacher.demonstrations, or the benchmarks of the file in data.train"
    )
