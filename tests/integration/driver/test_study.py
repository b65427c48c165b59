"""A study as a user runs it: two methods on the quickstart's models, one Ray, real engines."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from sirt_ray.config.resources import ResourcesConfig
from sirt_ray.config.study import Study, Trial
from sirt_ray.driver.study import RunOptions, run_in_parallel
from tests.helpers.paths import JOBS

STUDY = JOBS / "study_quickstart.yaml"
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


def run(output: Path, trials: int = 1, **settings: str) -> str:
    arguments = ["run", str(STUDY), "--trials", str(trials)]
    for name, value in {**SMALL, **settings, "output": str(output)}.items():
        arguments += ["--set", f"{name}={value}"]
    return sirt(*arguments)


def sirt(*arguments: str) -> str:
    line = [sys.executable, "-m", "sirt_ray", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_two_methods_share_their_student_and_the_same_command_again_makes_nothing(
    tmp_path: Path,
) -> None:
    assert "2 of 2 trials are finished" in run(tmp_path)
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
    report = sirt("report", str(folder), "--format", "markdown")
    assert "2 of 2 trials are finished (2 of method x 1 of seed)." in report
    for cell, student in ((tuned, "round_00"), (rft, "round_01")):
        scores = json.loads((cell / "scores.json").read_text())[student]
        figures = [f"{100 * scores[name]['cot']['accuracy']:.1f} ± " for name in scores]
        row = next(line for line in report.splitlines() if line.startswith(f"| {cell.name[:-6]} "))
        assert all(figure in row for figure in figures)
    assert "## Difference to instruction_tuning, points, CoT prompts" in report
    assert "| baseline < instruction_tuning (4.1, Figures 2, 3) | 1 |" in report
    run(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")} == records


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cells_side_by_side_come_to_what_one_by_one_comes_to(tmp_path: Path) -> None:
    both, one = tmp_path / "both", tmp_path / "one"
    shown = run(both, trials=2)
    assert "2 trials at once" in shown and "rft-seed0 | " in shown
    assert "waiting for the trial that makes it" in shown
    run(one)
    for cell in ("instruction_tuning-seed0", "rft-seed0"):
        scores = [(root / "study_quickstart" / cell / "scores.json") for root in (both, one)]
        assert scores[0].read_text() == scores[1].read_text()
    found = [len([*(root / "study_quickstart").rglob("record.json")]) for root in (both, one)]
    assert found[0] == found[1]


@dataclass(frozen=True)
class Dies:
    """Ends the process that it is sent to."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_a_process_that_dies_takes_its_cell_with_it_and_no_other(tmp_path: Path) -> None:
    jobs = {"first": None, "dying": Dies(), "third": None, "fourth": None}
    trials = [Trial(name, {}, cast(Any, job)) for name, job in jobs.items()]
    study = Study("mine", tmp_path, {}, trials)
    how = RunOptions(None, ResourcesConfig(), tmp_path / "logs")
    ended = {each.trial: each.error for each in run_in_parallel(study, how, 2)}
    assert ended.keys() == jobs.keys()
    assert ended["dying"] == "its process died with exit code 3"
    assert all("NoneType" in str(ended[name]) for name in ("first", "third", "fourth"))
