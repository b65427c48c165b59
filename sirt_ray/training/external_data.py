"""The user's own rows -> the Parquet files of a run.

    sft   prompt, completion
    dpo   prompt, chosen, rejected

All columns are text. A prompt is used as it is, as a user's message if the tokenizer has a chat
template; what follows is appended without anything between, and ends in the end of the sequence.
Rows with the same prompt are one question: the validation loss gets all of them or none.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sirt_ray.artifacts import parquet
from sirt_ray.core.encoding import Tokenizer, check_pair_ids, encode_as_written
from sirt_ray.errors import DataError
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
    files = parquet.files(source) if source.suffix != ".jsonl" else []
    return bool(files) and set(_SCHEMAS[kind].names) <= set(pq.read_schema(files[0]).names)


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
    for number, row in enumerate(_rows(source), start=1):
        try:
            made.append(to_row(_texts(row, kind), tokenizer))
        except DataError as error:
            problems.append(f"row {number}: {error}")
    if problems or not made:
        shown = problems[:_SHOWN] or ["there is no row in it"]
        more = [f"and {len(problems) - _SHOWN} more rows"] if len(problems) > _SHOWN else []
        raise DataError("\n  ".join([f"{source} cannot be trained on:", *shown, *more]))
    parquet.write(out / f"{kind}.parquet", made, _SCHEMAS[kind])
    return {"rows": len(made)}


def _rows(source: Path) -> Iterator[Any]:
    """Yield the rows of a file. Raises DataError for a line that is no JSON."""
    if source.suffix == ".jsonl":
        with source.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{source}:{number} is no valid JSON: {error}") from error
    else:
        yield from parquet.rows(source)


def _texts(row: Any, kind: Kind) -> list[str]:
    """Return the texts of the columns. Raises DataError if one is missing or empty."""
    columns = _COLUMNS[kind]
    wrong = [name for name in columns if not (isinstance(row, dict) and _is_text(row.get(name)))]
    if wrong:
        raise DataError(
            f"{' and '.join(wrong)} must be text and not empty; {kind} takes the columns"
            f" {', '.join(columns)}"
        )
    return [row[name] for name in columns]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


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
