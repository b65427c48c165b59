"""All questions of a job's benchmarks -> the files of the train, validation and test splits.

`benchmarks/selection.py` selects the questions.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sirt_ray.artifacts import parquet
from sirt_ray.benchmarks import rows
from sirt_ray.benchmarks.base import Generated, Part
from sirt_ray.benchmarks.contamination import contamination
from sirt_ray.benchmarks.registry import benchmarks_of
from sirt_ray.benchmarks.selection import (
    answer_counts,
    contaminated,
    select_test,
    select_training,
    text_key,
)
from sirt_ray.config.data import DataConfig
from sirt_ray.errors import DataError
from sirt_ray.types import Question, Split


def write_splits(
    out: Path, data: DataConfig, seed: int, found: Mapping[tuple[str, Part], list[Question]]
) -> dict[str, dict[str, Any]]:
    """Write `out/<benchmark>/<train|validation|test>.parquet` from all questions, in order, and
    return the counts of used and dropped rows by benchmark. Raises one DataError for all benchmarks
    with too few rows."""
    known = benchmarks_of(data)
    tests = {
        name: select_test(name, found[name, "test"], data.num_test, seed) for name in data.evaluate
    }
    test_texts = {text_key(question) for name in data.evaluate for question in found[name, "test"]}
    counts: dict[str, dict[str, Any]] = {name: {} for name in (*data.train, *data.evaluate)}
    problems: list[str] = []
    trained_on: list[Question] = []
    for name in data.train:
        benchmark = known[name]
        wanted = data.num_train or benchmark.default_num_train
        if data.num_train is None and isinstance(benchmark.source, Generated):
            wanted = benchmark.source.num_train
        try:
            chosen = select_training(
                name, found[name, "train"], wanted, data.num_validation, benchmark.balanced, seed
            )
        except DataError as error:
            problems.append(str(error))
            continue
        trained_on += chosen.train
        also_in_test = contaminated(chosen.train, test_texts)
        counts[name]["training_rows"] = {**chosen.counts, "train_also_in_test": also_in_test}
        counts[name]["train"] = _write(out, name, "train", chosen.train)
        counts[name]["validation"] = _write(out, name, "validation", chosen.validation)
    rows.raise_all(problems)
    for name, chosen_test in tests.items():
        num_rows = len(found[name, "test"])
        counts[name]["test_rows"] = {
            "rows": num_rows,
            "dropped_not_chosen": num_rows - len(chosen_test),
        }
        counts[name]["test"] = _write(out, name, "test", chosen_test)
    for name, found_in_both in contamination(trained_on, tests).items():
        counts[name]["contamination"] = found_in_both
    return counts


def _write(out: Path, name: str, split: Split, questions: Sequence[Question]) -> dict[str, Any]:
    written = [parquet.to_row(question) for question in questions]
    counts = {
        "questions": len(written),
        "answers": answer_counts(questions),
        "sha256": _content_hash(written),
    }
    parquet.write(out / name / f"{split}.parquet", written, parquet.QUESTION, counts)
    return counts


def _content_hash(written: Iterable[parquet.Row]) -> str:
    """Hash the rows themselves: the bytes of a Parquet file also depend on the writer."""
    digest = hashlib.sha256()
    for row in written:
        present = {name: value for name, value in row.items() if value is not None}
        digest.update(json.dumps(present, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
