"""Local files of benchmark rows: where they are found, and what is wrong with them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sirt_ray.benchmarks import files
from sirt_ray.benchmarks.base import Part
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "gsm8k").mkdir()
    return tmp_path


def found(root: Path, part: Part = "train", name: str = "gsm8k") -> list[str]:
    return [path.name for path in files.find(root, REGISTRY[name], part)]


def check(path: Path, name: str = "gsm8k") -> None:
    files.check(path, REGISTRY[name], "train")


def test_files_are_found_in_all_forms(root: Path) -> None:
    (root / "gsm8k" / "test.jsonl").touch()
    assert found(root, "test") == ["test.jsonl"]
    (root / "gsm8k" / "train").mkdir()
    for name in ("b.parquet", "a.parquet", "notes.txt"):
        (root / "gsm8k" / "train" / name).touch()
    assert found(root) == ["a.parquet", "b.parquet"]
    (root / "openbookqa").mkdir()
    (root / "openbookqa" / "test.csv").touch()
    assert found(root, "test", "openbookqa") == ["test.csv"]
    (root / "openbookqa" / "validation.csv").touch()
    assert found(root, "test", "openbookqa") == ["validation.csv"]


def test_files_are_found_by_any_ending(root: Path) -> None:
    folder = root / "gsm8k"
    for name in ("train.csv", "train.JSONL.gz", "train.jsonl", "train.txt", "training.parquet"):
        (folder / name).touch()
    assert found(root) == ["train.jsonl"]
    (folder / "train.jsonl").unlink()
    assert found(root) == ["train.JSONL.gz"]
    (folder / "train.parquet").mkdir()
    for name in ("part-1.snappy.parquet", "part-0.snappy.parquet", "_SUCCESS", ".part-0.crc"):
        (folder / "train.parquet" / name).touch()
    assert found(root) == ["part-0.snappy.parquet", "part-1.snappy.parquet"]


def test_missing_files_say_what_is_there(root: Path) -> None:
    (root / "gsm8k" / "tests.parquet").touch()
    with pytest.raises(DataError, match=r"gsm8k, split test: no rows in .*contains tests.parquet"):
        found(root, "test")
    with pytest.raises(DataError, match=r"piqa, split train: .*no such folder"):
        found(root, "train", "piqa")
    (root / "gsm8k" / "train").mkdir()
    with pytest.raises(DataError, match="contains no files"):
        found(root)
    (root / "gsm8k" / "train" / "a.csv").touch()
    (root / "gsm8k" / "train" / "a.jsonl").touch()
    with pytest.raises(DataError, match="files of several kinds"):
        found(root)


def write_all_kinds(folder: Path, given: list[dict[str, Any]]) -> Iterator[Path]:
    pq.write_table(pa.Table.from_pylist(given), folder / "rows.parquet")
    yield folder / "rows.parquet"
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    yield folder / "rows.jsonl"
    (folder / "rows.json").write_text(json.dumps(given, indent=1))
    yield folder / "rows.json"
    lines = [",".join(given[0]), *(",".join(f'"{v}"' for v in row.values()) for row in given)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    yield folder / "rows.csv"


def test_columns_are_checked_in_all_forms(root: Path) -> None:
    for path in write_all_kinds(root, 2 * [{"question": "How many?", "answer": "#### 3"}]):
        check(path)
    for path in write_all_kinds(root, [{"question": "x", "solution": "y"}]):
        with pytest.raises(DataError, match=r"no column 'answer' \(it has question, solution\)"):
            check(path)


def test_empty_and_broken_files_are_named(root: Path) -> None:
    empty = pa.Table.from_pylist([], schema=pa.schema({"question": pa.string()}))
    pq.write_table(empty, root / "rows.parquet")
    (root / "rows.jsonl").write_text("\n")
    (root / "rows.json").write_text("[]")
    (root / "rows.csv").write_text("question,answer\n")
    for suffix in (".parquet", ".jsonl", ".json", ".csv"):
        with pytest.raises(DataError, match=r"gsm8k, split train: .* has no rows"):
            check(root / f"rows{suffix}")
    (root / "rows.parquet").write_text("no parquet")
    (root / "rows.jsonl").write_text("{broken\n")
    (root / "rows.json").write_text("[1, 2]")
    (root / "rows.csv").write_bytes(b"\xff\xfe\x00")
    for suffix in (".parquet", ".jsonl", ".json", ".csv"):
        with pytest.raises(DataError, match=r"gsm8k, split train: .* cannot be read"):
            check(root / f"rows{suffix}")
