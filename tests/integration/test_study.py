"""A study as a user runs it: two methods on the quickstart's models, one Ray, real engines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "jobs" / "study_quickstart.yaml"
SMALL = {
    "only": "[{method: [instruction_tuning, rft], seed: 0}]",
    "data.num_train": 24,
    "data.num_validation": 0,
    "data.num_test": 12,
    "data.evaluate": "[word_problems, letter_choices]",
    "evaluation.teacher": "false",
    "tune.epochs": 6,
    "refine.pairs.max_per_question": 1,
    "refine.epochs": 1,
}

pytestmark = pytest.mark.ray


def run(output: Path) -> str:
    line = [sys.executable, "-m", "sirt_ray", "run", str(STUDY), "--set", f"output={output}"]
    for name, value in SMALL.items():
        line += ["--set", f"{name}={value}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_two_methods_share_their_student_and_the_same_command_again_makes_nothing(
    tmp_path: Path,
) -> None:
    assert "2 of 2 cells are finished" in run(tmp_path)
    folder = tmp_path / "study_quickstart"
    tuned, rft = (folder / f"{method}-seed0" for method in ("instruction_tuning", "rft"))
    for cell, stages in ((tuned, 2), (rft, 3)):
        assert len(json.loads((cell / "scores.json").read_text())) == stages
        assert (cell / "config.yaml").is_file() and (cell / "events.jsonl").is_file()
    assert (rft / "round_00/student").resolve() == (tuned / "round_00/student").resolve()
    assert (rft / "round_01/student/model.safetensors").is_file()
    records = {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")}
    made = [path for path in records if "artifacts" in path.parts]
    assert len(made) == 9
    run(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")} == records
