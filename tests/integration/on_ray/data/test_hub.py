"""All eight benchmarks by their hub names, from a fake hub (`tests/helpers/fake_hub.py`).

In a process of its own: the libraries read the hub's address once, when they are imported. The
tests check the requests to the hub, their revision, and what becomes of the rows; that the real hub
holds these data sets in this layout cannot be tested without a network.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sirt_ray.benchmarks.base import Benchmark, Hub, Part
from sirt_ray.benchmarks.registry import REGISTRY
from tests.helpers.benchmark_rows import ROWS
from tests.helpers.fake_hub import Repository, hub

SPLITS = {"train": 3, "validation": 2, "test": 4}
"""Rows of each split of each configuration."""
CONFIGS = {
    "commonsense_qa": ("default",),
    "multiarith": ("default",),
    "gsm8k": ("main", "socratic"),
    "openbookqa": ("additional", "main"),
    "mmlu": ("abstract_algebra", "all"),
}
"""As the cards declare them, where it is more or other than what the benchmark loads."""
PARTS: dict[str, tuple[Part, ...]] = {
    name: ("train", "test") if benchmark.train else ("test",)
    for name, benchmark in REGISTRY.items()
    if isinstance(benchmark.source, Hub)
}
LOADER = """
import json, sys
from dataclasses import asdict
from sirt_ray.benchmarks import rows
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.on_ray.data.hub import download

for name, part in json.loads(sys.argv[1]):
    benchmark = REGISTRY[name]
    table = download(benchmark, benchmark.source, part)
    converted = [rows.convert(benchmark, row) for row in table.to_pylist()]
    questions, bad = rows.number(benchmark, part, converted)
    print(json.dumps([asdict(question) for question in questions]))
"""


def config_rows(name: str, config: str, split: str) -> list[dict[str, Any]]:
    """Rows that can be distinguished by the text of their question."""
    benchmark = REGISTRY[name]
    column = benchmark.columns[0]
    row: dict[str, Any] = ROWS[name] | {"more": 1}
    return [
        row | {column: f"{config}, {split}: {number}. {row[column]}"}
        for number in range(SPLITS[split])
    ]


def parquet(table: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table), file)
    return file.getvalue()


def repository(benchmark: Benchmark, source: Hub) -> Repository:
    """The data set's files, with a card, or as the hub's own conversion has them."""
    name, files = benchmark.name, dict[str, bytes]()
    if source.files is not None:
        config = source.files.partition("/")[0]
        for split in SPLITS:
            table = config_rows(name, config, split)
            files[f"{config}/{split}/0000.parquet"] = parquet(table[:1])
            files[f"{config}/{split}/0001.parquet"] = parquet(table[1:])
        return Repository(source.revision, files)
    card = ["---", "configs:"]
    for config in CONFIGS.get(name, source.configs):
        card += [f"- config_name: {config}", "  data_files:"]
        for split in SPLITS:
            card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
            content = parquet(config_rows(name, config, split))
            files[f"{config}/{split}-00000-of-00001.parquet"] = content
    files["README.md"] = "\n".join([*card, "---", ""]).encode()
    return Repository(source.revision, files)


def repositories() -> dict[str, Repository]:
    found: dict[str, Repository] = {}
    for name in PARTS:
        source = REGISTRY[name].source
        assert isinstance(source, Hub)
        found[source.dataset] = repository(REGISTRY[name], source)
    return found


def expected(name: str, part: Part) -> list[str]:
    """The texts of the questions that the benchmark has to make of the stand-in's rows."""
    benchmark = REGISTRY[name]
    source = benchmark.source
    assert isinstance(source, Hub)
    configs = source.configs or ((source.files or "default").partition("/")[0],)
    split = benchmark.split_names(part)[0]
    table = [row for config in configs for row in config_rows(name, config, split)]
    return [benchmark.to_question(row, "").text for row in table]


def load(home: Path, endpoint: str, **variables: str) -> list[list[dict[str, Any]]]:
    """The questions of every part of every benchmark, from a process that knows this hub only."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    parts = [(name, part) for name, parts in PARTS.items() for part in parts]
    done = subprocess.run(
        [sys.executable, "-c", LOADER, json.dumps(parts)],
        env=kept
        | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[Any]]:
    home = tmp_path_factory.mktemp("hub")
    with hub(repositories()) as endpoint:
        return home, endpoint, load(home, endpoint)


def test_eight_benchmarks_load_by_their_hub_names(loaded: tuple[Path, str, list[Any]]) -> None:
    assert len(PARTS) == 8
    _, _, found = loaded
    parts = [(name, part) for name, parts in PARTS.items() for part in parts]
    for (name, part), questions in zip(parts, found, strict=True):
        assert [question["text"] for question in questions] == expected(name, part), (name, part)
        assert [q["id"] for q in questions] == [f"{name}/{part}/{n}" for n in range(len(questions))]
        references = {question["reference"] for question in questions}
        assert references == {REGISTRY[name].to_question(ROWS[name], "").reference}


def test_what_was_loaded_once_needs_no_network(loaded: tuple[Path, str, list[Any]]) -> None:
    """Nobody listens at the address any more."""
    home, endpoint, found = loaded
    assert load(home, endpoint, HF_HUB_OFFLINE="1") == found
