"""Records <-> Parquet. One schema for each record, in the columns the ecosystem knows.

Demonstrations carry `prompt`/`completion` and pairs `prompt`/`chosen`/`rejected` as text, so that
`datasets`, TRL and LLaMA-Factory read the files as they are; token ids and provenance stand beside
them. A file is written under a temporary name and renamed when it is whole.
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sirt_ray.errors import DataError, named
from sirt_ray.types import Completion, Demonstration, Graded, PreferencePair, Question

_IDS = pa.list_(pa.int32())
_ROWS_AT_A_TIME = 1024

QUESTION = pa.schema(
    {
        "id": pa.string(),
        "benchmark": pa.string(),
        "text": pa.string(),
        "choices": pa.list_(pa.string()),
        "reference": pa.string(),
        "instruction": pa.string(),
    }
)
GRADED = pa.schema(
    {
        "question_id": pa.string(),
        "benchmark": pa.string(),
        "prompt_kind": pa.string(),
        "sample_index": pa.int32(),
        "prompt": pa.string(),
        "completion": pa.string(),
        "prompt_ids": _IDS,
        "completion_ids": _IDS,
        "stop_reason": pa.string(),
        "model_version": pa.string(),
        "seed": pa.int64(),
        "verdict": pa.string(),
        "extracted": pa.string(),
        "reference": pa.string(),
    }
)
DEMONSTRATION = pa.schema(
    [
        *GRADED,
        pa.field("question", pa.string()),
        pa.field("choices", pa.list_(pa.string())),
        pa.field("instruction", pa.string()),
    ]
)
_SIDE = [
    ("ids", _IDS),
    ("prompt_kind", pa.string()),
    ("sample_index", pa.int32()),
    ("verdict", pa.string()),
    ("extracted", pa.string()),
    ("stop_reason", pa.string()),
    ("seed", pa.int64()),
    ("source_prompt", pa.string()),
    ("source_prompt_ids", _IDS),
]
PAIR = pa.schema(
    [
        ("question_id", pa.string()),
        ("benchmark", pa.string()),
        ("rule", pa.string()),
        ("reference", pa.string()),
        ("model_version", pa.string()),
        ("prompt", pa.string()),
        ("prompt_ids", _IDS),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        *[(f"{side}_{name}", kind) for side in ("chosen", "rejected") for name, kind in _SIDE],
    ]
)

_COUNTS = b"sirt_counts"

Row = dict[str, Any]


def question_row(question: Question) -> Row:
    return {
        "id": question.id,
        "benchmark": question.benchmark,
        "text": question.text,
        "choices": list(question.choices),
        "reference": question.reference,
        "instruction": question.instruction,
    }


def to_question(row: Mapping[str, Any]) -> Question:
    return Question(
        row["id"],
        row["benchmark"],
        row["text"],
        tuple(row["choices"]),
        row["reference"],
        row.get("instruction"),
    )


def graded_row(graded: Graded) -> Row:
    done = graded.completion
    return {
        "question_id": done.question_id,
        "benchmark": done.benchmark,
        "prompt_kind": done.prompt_kind,
        "sample_index": done.sample_index,
        "prompt": done.prompt,
        "completion": done.text,
        "prompt_ids": done.prompt_ids,
        "completion_ids": done.completion_ids,
        "stop_reason": done.stop_reason,
        "model_version": done.model_version,
        "seed": done.seed,
        "verdict": graded.verdict,
        "extracted": graded.extracted,
        "reference": graded.reference,
    }


def to_graded(row: Mapping[str, Any]) -> Graded:
    completion = Completion(
        question_id=row["question_id"],
        benchmark=row["benchmark"],
        prompt_kind=row["prompt_kind"],
        sample_index=row["sample_index"],
        prompt=row["prompt"],
        text=row["completion"],
        prompt_ids=tuple(row["prompt_ids"]),
        completion_ids=tuple(row["completion_ids"]),
        stop_reason=row["stop_reason"],
        model_version=row["model_version"],
        seed=row["seed"],
    )
    return Graded(completion, row["verdict"], row["extracted"], row["reference"])


def demonstration_row(demonstration: Demonstration) -> Row:
    question = demonstration.question
    return graded_row(demonstration.graded) | {
        "question": question.text,
        "choices": list(question.choices),
        "instruction": question.instruction,
    }


def to_demonstration(row: Mapping[str, Any]) -> Demonstration:
    graded = to_graded(row)
    question = Question(
        row["question_id"],
        row["benchmark"],
        row["question"],
        tuple(row["choices"]),
        row["reference"],
        row.get("instruction"),
    )
    return Demonstration(question, graded)


def pair_row(pair: PreferencePair) -> Row:
    row: Row = {
        "question_id": pair.question_id,
        "benchmark": pair.benchmark,
        "rule": pair.rule,
        "reference": pair.chosen.reference,
        "model_version": pair.chosen.completion.model_version,
        "prompt": pair.prompt,
        "prompt_ids": pair.prompt_ids,
    }
    for side, graded in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if graded is None:
            continue
        done = graded.completion
        row |= {
            side: done.text,
            f"{side}_ids": done.completion_ids,
            f"{side}_prompt_kind": done.prompt_kind,
            f"{side}_sample_index": done.sample_index,
            f"{side}_verdict": graded.verdict,
            f"{side}_extracted": graded.extracted,
            f"{side}_stop_reason": done.stop_reason,
            f"{side}_seed": done.seed,
            f"{side}_source_prompt": done.prompt,
            f"{side}_source_prompt_ids": done.prompt_ids,
        }
    return row


def to_pair(row: Mapping[str, Any]) -> PreferencePair:
    def side(name: str) -> Graded:
        completion = Completion(
            question_id=row["question_id"],
            benchmark=row["benchmark"],
            prompt_kind=row[f"{name}_prompt_kind"],
            sample_index=row[f"{name}_sample_index"],
            prompt=row[f"{name}_source_prompt"],
            text=row[name],
            prompt_ids=tuple(row[f"{name}_source_prompt_ids"]),
            completion_ids=tuple(row[f"{name}_ids"]),
            stop_reason=row[f"{name}_stop_reason"],
            model_version=row["model_version"],
            seed=row[f"{name}_seed"],
        )
        return Graded(
            completion, row[f"{name}_verdict"], row[f"{name}_extracted"], row["reference"]
        )

    return PreferencePair(
        question_id=row["question_id"],
        benchmark=row["benchmark"],
        rule=row["rule"],
        prompt=row["prompt"],
        prompt_ids=tuple(row["prompt_ids"]),
        chosen=side("chosen"),
        rejected=None if row["rejected_ids"] is None else side("rejected"),
    )


def write(
    path: Path, rows: Iterable[Row], schema: pa.Schema, counts: Mapping[str, Any] | None = None
) -> None:
    """Write one file atomically. `counts` (what was made and dropped) travel in its metadata."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    if counts is not None:
        table = table.replace_schema_metadata({_COUNTS: json.dumps(counts, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(table, partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
    except OSError as error:
        raise named(error, path) from error
    partial.replace(path)


def files(path: Path) -> Sequence[Path]:
    """The Parquet files of an artifact, in order; the file itself where `path` is one."""
    return [path] if path.is_file() else sorted(path.glob("*.parquet"))


def rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a file or of a folder's files, in order, in the memory of a few at a time;
    `columns` alone where they are named."""
    found = files(path)
    if not found:
        raise DataError(f"no Parquet file in {path}. Was the folder moved or emptied by hand?")
    for file in found:
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=columns):
                    yield from batch.to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise unreadable(file, error) from error


def rows_of(path: Path, questions: Collection[str], columns: Sequence[str]) -> Iterator[Row]:
    """Of a folder of graded completions, the rows of these questions, in order; the rest is not
    turned into Python values."""
    for file in files(path):
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(columns=["question_id", *columns]):
                    for place, question in enumerate(batch.column("question_id").to_pylist()):
                        if question in questions:
                            yield {name: batch.column(name)[place].as_py() for name in columns}
        except (pa.ArrowInvalid, OSError) as error:
            raise unreadable(file, error) from error


def unreadable(file: Path, error: Exception) -> DataError:
    return DataError(
        f"{file} cannot be read: {error}. Move the artifact that it is part of away, and let"
        " `sirt run` build it again"
    )


def read(path: Path) -> list[Row]:
    """All rows of a file or of a folder's files, in order."""
    return list(rows(path))


def counts(path: Path) -> dict[str, Any]:
    """The counts that were written with one file."""
    metadata = pq.read_schema(path).metadata or {}
    return json.loads(metadata.get(_COUNTS, b"{}"))
