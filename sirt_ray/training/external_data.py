"""The user's own rows -> the Parquet files of a run.

    sft   prompt, completion
    dpo   prompt, chosen, rejected

All columns are text, or chats of one message, the user's or the assistant's, which are read as its
text. A prompt is used as it is, as a user's message if the tokenizer has a chat
template; what follows is appended without anything between, and ends in the end of the sequence.
Rows with the same prompt are one question: the validation loss gets all of them or none.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sirt_ray.artifacts import parquet
from sirt_ray.core import cells
from sirt_ray.core.encoding import Tokenizer, check_pair_ids, encode_as_written
from sirt_ray.errors import DataError
from sirt_ray.storage import row_files
from sirt_ray.storage.row_files import FileRow
from sirt_ray.types import Completion, Demonstration, Graded, PreferencePair, Question, Verdict

Kind = Literal["sft", "dpo"]

_COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "sft": ("prompt", "completion"),
    "dpo": ("prompt", "chosen", "rejected"),
}
_SCHEMAS: Mapping[Kind, pa.Schema] = {"sft": parquet.DEMONSTRATION, "dpo": parquet.PAIR}
_EXTERNAL = "given"
"""The value of columns that name a benchmark, a rule or a model: such rows have none."""
_SHOWN = 5
"""Problems that an error lists."""


def is_from_run(source: Path, kind: Kind) -> bool:
    """Return whether these are files of a run, which are trained on as they are."""
    is_parquet = source.is_dir() or row_files.kind(source) in (".parquet", None)
    files = parquet.files(source) if is_parquet else []
    try:
        return bool(files) and set(_SCHEMAS[kind].names) <= set(pq.read_schema(files[0]).names)
    except (pa.ArrowInvalid, OSError):
        return False  # `encode` says what is wrong with the file.


def check_ids(source: Path, tokenizer: Tokenizer) -> None:
    """Check the token ids of the first of a run's pairs. Raises ModelError if they are another
    tokenizer's."""
    for row in itertools.islice(parquet.rows(source), 1):
        check_pair_ids(parquet.from_row(PreferencePair, row), tokenizer)


def encode(source: Path, kind: Kind, tokenizer: Tokenizer, out: Path) -> dict[str, int]:
    """Write `out/<kind>.parquet`, and return the number of rows.

    Raises one DataError for all rows that cannot be used.
    """
    to_row = {"sft": _demonstration, "dpo": _pair}[kind]
    made: list[parquet.Row] = []
    problems: list[str] = []
    for where, row in _rows(source):
        try:
            made.append(to_row(_texts(row, kind), tokenizer))
        except DataError as error:
            problems.append(f"{where}: {error}")
    if problems or not made:
        shown = problems[:_SHOWN] or ["there is no row in it"]
        more = [f"and {len(problems) - _SHOWN} more rows"] if len(problems) > _SHOWN else []
        raise DataError("\n  ".join([f"{source} cannot be trained on:", *shown, *more]))
    parquet.write(out / f"{kind}.parquet", made, _SCHEMAS[kind])
    return {"rows": len(made)}


def _rows(source: Path) -> Iterator[tuple[str, FileRow]]:
    """Yield the rows, each with its location for messages. Parquet files of a folder are read
    whatever else is in it."""
    files = parquet.files(source) if source.is_dir() else [source]
    for file in files or row_files.files(source):
        of_file = "" if file == source else f"{file.name}, "
        for row in row_files.read(file):
            yield f"{of_file}{row.where}", row


def _texts(row: FileRow, kind: Kind) -> list[str]:
    """Return the texts of the columns. Raises DataError with everything that is wrong with the
    row: a column that is missing, empty, or no text."""
    if row.problem:
        raise DataError(row.problem)
    texts: list[str] = []
    empty: list[str] = []
    problems: list[str] = []
    for name in _COLUMNS[kind]:
        role = "user" if name == "prompt" else "assistant"
        try:
            text = cells.content_of_chat(row.values.get(name), name, role)
            texts.append(cells.encodable(text, name) if isinstance(text, str) else "")
        except DataError as error:
            problems.append(str(error))
            continue
        if not texts[-1]:
            empty.append(name)
    if empty:
        problems.append(
            f"{' and '.join(empty)} must be text and not empty; {kind} takes the columns"
            f" {', '.join(_COLUMNS[kind])}"
        )
    if problems:
        raise DataError("; ".join(problems))
    return texts


def _demonstration(texts: list[str], tokenizer: Tokenizer) -> parquet.Row:
    prompt, completion = texts
    graded = _graded(prompt, completion, "right", tokenizer)
    question = Question(graded.completion.question_id, _EXTERNAL, prompt, (), "")
    # Without a question the prompt is not rendered again: see `tuning_data`.
    return parquet.to_row(Demonstration(question, graded)) | {"question": None}


def _pair(texts: list[str], tokenizer: Tokenizer) -> parquet.Row:
    prompt, chosen, rejected = texts
    better = _graded(prompt, chosen, "right", tokenizer)
    worse = _graded(prompt, rejected, "wrong", tokenizer)
    completion = better.completion
    return parquet.to_row(
        PreferencePair(
            completion.question_id,
            _EXTERNAL,
            _EXTERNAL,
            prompt,
            completion.prompt_ids,
            better,
            worse,
        )
    )


def _graded(prompt: str, text: str, verdict: Verdict, tokenizer: Tokenizer) -> Graded:
    question_id = f"{_EXTERNAL}/{hashlib.sha256(prompt.encode()).hexdigest()[:16]}"
    sequence = encode_as_written(prompt, text, question_id, tokenizer)
    completion = Completion(
        question_id=question_id,
        benchmark=_EXTERNAL,
        prompt_kind="plain",
        sample_index=0,
        prompt=prompt,
        text=text,
        prompt_ids=sequence.prompt_ids,
        completion_ids=sequence.completion_ids,
        stop_reason="stop",
        model_version=_EXTERNAL,
        seed=0,
    )
    return Graded(completion, verdict, None, "")
