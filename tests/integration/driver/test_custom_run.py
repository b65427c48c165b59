"""A job with a task, a verifier and a pair rule of its own, as a user runs it."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.helpers.paths import JOBS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


def rows(folder: Path) -> list[dict[str, Any]]:
    parts = sorted(folder.glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_a_task_a_verifier_and_a_pair_rule_of_ones_own(tmp_path: Path) -> None:
    # One engine and one training: the paths of the code, at the least cost.
    shown = tmp_path / "demonstrations.jsonl"
    with shown.open("w") as file:
        for row in runpy.run_path(str(JOBS / "own_task.py"))["coins"]("train"):
            answered = {"question": row["question"], "completion": f"It is {row['answer']}."}
            file.write(json.dumps(answered) + "\n")
    small = {"data.num_train": 60, "data.num_validation": 2, "data.num_test": 8}
    small |= {"data.evaluate": "[coins]", "evaluation.prompts": "[cot]", "tune.skip": True}
    small |= {"teacher": f"{{demonstrations: {{path: {shown}}}}}", "refine.loss": "rft"}
    small |= {"refine.ground_truth": "gold", "refine.nll_weight": 0, "refine.epochs": 1}
    line = [sys.executable, "-m", "sirt_ray", "run", str(JOBS / "own_task.yaml"), "--allow-code"]
    for name, value in {"output": tmp_path, **small}.items():
        line += ["--set", f"{name}={value}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "own_task.py (coins, last_number, shortest_over_wrong)" in done.stdout
    run_dir = tmp_path / "own_task"
    assert (run_dir / "code/own_task.py").read_bytes() == (JOBS / "own_task.py").read_bytes()
    for row in rows(run_dir / "round_01/samples"):
        last = re.findall(r"\d+", row["completion"])[-1:]
        assert row["extracted"] == (last[0] if last else None)
        assert (row["verdict"] == "right") == (last == [row["reference"]])
    pairs = rows(run_dir / "round_01/pairs")
    assert pairs and {pair["rule"] for pair in pairs} == {"own"}
    assert all(pair["chosen_verdict"] == "right" != pair["rejected_verdict"] for pair in pairs)
    # With another file: what was made by the one before would be untrue.
    changed = (JOBS / "own_task.py").read_text() + "# another\n"
    (tmp_path / "own_task.py").write_text(changed)
    for name in ("own_task.yaml", "quickstart.yaml"):
        (tmp_path / name).write_text((JOBS / name).read_text())
    line[line.index(str(JOBS / "own_task.yaml"))] = str(tmp_path / "own_task.yaml")
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "rows.coins/train" in done.stderr
