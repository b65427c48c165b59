"""What a run has come to, for tests that compare two."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import load_file


def events(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def content(run_dir: Path) -> dict[str, Any]:
    """What a run has made, without times."""
    made: dict[str, Any] = {"scores": json.loads((run_dir / "scores.json").read_text())}
    for path in sorted(run_dir.rglob("*")):
        name = str(path.relative_to(run_dir))
        if path.suffix == ".parquet":
            made[name] = pq.read_table(path).to_pylist()
        elif path.suffix == ".safetensors":
            made[name] = {key: value.tolist() for key, value in load_file(path).items()}
        elif path.name == "record.json":
            made[name] = json.loads(path.read_text())["inputs"]
    return made
