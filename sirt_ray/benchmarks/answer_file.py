"""A user's file of answers -> graded completions of the run's questions.

    row --id, else text--> question --verifier--> Graded

Every row is counted by its outcome. The answers are graded like those of a teacher, whoever wrote
them.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sirt_ray.benchmarks.base import Row
from sirt_ray.benchmarks.registry import grade
from sirt_ray.benchmarks.selection import normalised
from sirt_ray.config.teacher import DemonstrationFileConfig
from sirt_ray.core import cells, prompts
from sirt_ray.errors import DataError
from sirt_ray.storage import row_files
from sirt_ray.storage.hashing import content_key
from sirt_ray.storage.row_files import FileRow
from sirt_ray.storage.uri import user_path
from sirt_ray.types import Completion, Graded, Judgement, Question

_WHOLE_FILE = 1 << 62
_SHOWN_CHARACTERS = 80
_MOST_SHOWN = 5
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
        column = config.question_column
        text = cells.content_of_chat(row.get(column), column, "user")
        benchmark = row.get(config.benchmark_column)
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
    index, others = _Index(questions), _Index(held_out)
    counts: dict[str, int] = dict.fromkeys(("rows", *_ROW_OUTCOMES, *_ANSWER_OUTCOMES), 0)
    graded: list[Graded] = []
    bad: list[str] = []
    first: Row = {}
    taken: dict[str, list[str]] = {}
    for where, row in _rows(config):
        counts["rows"] += 1
        first = first or row.values
        try:
            found, text = _read(row, index, config)
        except DataError as error:
            bad.append(f"{where}: {error}")
            continue
        if len(found) != 1:
            unmatched = "held_out_rows" if others.find(row.values, config) else "unmatched_rows"
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
    if bad:
        raise DataError(_cannot_be_read(config, bad))
    if not graded:
        raise DataError(_nothing_found(config, counts["rows"], first, questions))
    return Answers(graded, counts)


def _rows(config: DemonstrationFileConfig) -> Iterator[tuple[str, FileRow]]:
    """Yield the rows, each with its location for messages."""
    path = user_path(config.path)
    for file in row_files.files(path):
        of_file = "" if file == path else f"{file.name}, "
        for row in row_files.read(file):
            yield f"{of_file}{row.where}", row


def _read(
    row: FileRow, index: _Index, config: DemonstrationFileConfig
) -> tuple[list[Question], str]:
    """Return the questions that a row may answer, and its answer. Raises DataError for a row that
    cannot be read, or an answer that is no text."""
    if row.problem:
        raise DataError(row.problem)
    column = config.completion_column
    answer = cells.content_of_chat(row.values.get(column), column, "assistant")
    if cells.is_missing(answer):
        answer = ""
    if not cells.is_scalar(answer):
        raise DataError(f"{column!r} is {cells.shown(answer)} and not text")
    return index.find(row.values, config), cells.encodable(str(answer), column)


def check(config: DemonstrationFileConfig) -> None:
    """Check the file by its first row. Raises DataError with everything that is wrong with it."""
    path = user_path(config.path)
    where = f"teacher.demonstrations.path: {path}"
    if not path.exists():
        raise DataError(
            f"{where} is no file. Correct the path; it is read on the machine where `sirt` runs"
        )
    try:
        columns = row_files.columns(row_files.files(path)[0])
    except DataError as error:
        raise DataError(f"teacher.demonstrations.path: {error}") from error
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
    path = user_path(config.path)
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
    return not cells.is_missing(value) and str(value).strip() != ""


def _cannot_be_read(config: DemonstrationFileConfig, bad: Sequence[str]) -> str:
    more = [f"and {len(bad) - _MOST_SHOWN} more"] if len(bad) > _MOST_SHOWN else []
    shown = "\n  ".join([*bad[:_MOST_SHOWN], *more])
    return (
        f"teacher.demonstrations.path: {config.path}: {len(bad)} rows cannot be read. Correct or"
        f" remove them:\n  {shown}"
    )


def _nothing_found(
    config: DemonstrationFileConfig, num_rows: int, first: Row, questions: Sequence[Question]
) -> str:
    names = (config.question_id_column, config.question_column, config.benchmark_column)
    shown = {name: str(first[name])[:_SHOWN_CHARACTERS] for name in names if name in first}
    question = questions[0]
    return (
        f"none of the {num_rows} rows of {config.path} answers one of the {len(questions)}"
        f" training questions. Its first row has {json.dumps(shown)}; the first question is"
        f" {json.dumps(question.id)} with the text"
        f" {json.dumps(question.text[:_SHOWN_CHARACTERS])}. Name the right columns under"
        " teacher.demonstrations, or the benchmarks of the file in data.train"
    )
