"""Folders that version 0.1.0 wrote, without their weights: reports show them, runs reuse them."""

import json
import shutil
from pathlib import Path

import pytest

from sirt_ray.cli.main import main
from tests.helpers.paths import TESTS

RUN = TESTS / "golden" / "run_0.1.0"
STUDY = TESTS / "golden" / "study_0.1.0"


def copy_of(stored: Path, name: str, root: Path) -> Path:
    """A copy as it would be in the job's own output folder."""
    return shutil.copytree(stored, root / name, symlinks=True)


def records(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("record.json")
    }


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return copy_of(RUN, "stored_run", tmp_path)


def run_again(run_dir: Path, *overrides: str) -> int:
    """Run the job of a folder's own config.yaml."""
    settings = [f"output={run_dir.parent}", *overrides]
    return main(["run", str(run_dir / "config.yaml"), *(w for s in settings for w in ("--set", s))])


def test_a_run_is_reported(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_dir), "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    scores = json.loads((run_dir / "scores.json").read_text())
    for stage in ("teacher", "baseline", "round_00", "round_01"):
        accuracy = scores[stage]["word_problems"]["cot"]["accuracy"]
        assert f"{100 * accuracy:.1f}" in next(
            line for line in shown.splitlines() if line.startswith(f"| {stage} ")
        )
    assert main(["report", str(run_dir)]) == 0
    assert "word_problems" in (run_dir / "report.html").read_text()


def test_a_finished_run_is_finished(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, scores = records(run_dir), (run_dir / "scores.json").read_bytes()
    assert run_again(run_dir) == 0
    assert "The refined student is" in capsys.readouterr().out
    assert records(run_dir) == before
    assert (run_dir / "scores.json").read_bytes() == scores


def test_a_changed_setting_is_refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = records(run_dir)
    assert run_again(run_dir, "refine.beta=0.7") == 2
    error = capsys.readouterr().err
    assert "round_01/student" in error and "refine.beta: 0.1 -> 0.7" in error and "--force" in error
    assert records(run_dir) == before


def test_a_study_is_reported_and_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(STUDY, "stored_study", tmp_path)
    before = records(folder)
    assert main(["report", str(folder), "--format", "text"]) == 0
    shown = capsys.readouterr().out
    assert "tuned" in shown and "rft" in shown
    job = TESTS / "golden" / "study_0.1.0.yaml"
    assert main(["run", str(job), "--set", f"output={tmp_path}"]) == 0
    assert "2 of 2 trials are finished" in capsys.readouterr().out
    assert records(folder) == before
