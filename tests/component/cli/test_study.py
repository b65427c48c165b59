"""`sirt run` of a study, with a world of fakes in the place of Ray: what runs, what fails, what it
says."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sirt_ray.cli.main import main
from sirt_ray.config.job import JobConfig
from sirt_ray.core.interfaces import Counts
from sirt_ray.errors import StageError
from sirt_ray.on_ray import cluster, stages
from tests.helpers.fakes import FakeIdentities, FakeStages

STUDY = """\
study: mine
output: {output}
job:
  data: {{train: [word_problems], evaluate: [word_problems]}}
  teacher: {{model: "quickstart:teacher"}}
  student: {{model: "quickstart:student"}}
grid:
  method:
    tuned: {{method: instruction_tuning}}
    broken: {{method: rft, refine.learning_rate: 1.0}}
    rft: {{method: rft}}
"""


class World(FakeStages):
    """Cannot learn at a rate of 1."""

    made: ClassVar[list["World"]] = []

    def __init__(self, job: JobConfig, *given: Any) -> None:
        super().__init__()
        self.job = job
        World.made.append(self)

    def check_cluster(self) -> None: ...

    def close(self) -> None: ...

    def refine(self, out: Path, **needs: Any) -> Counts:
        if self.job.refine.learning_rate == 1.0:
            raise StageError("it diverged")
        return super().refine(out, **needs)

    def _make(self, out: Path, name: str) -> Counts:
        counts: dict[str, Any] = {"kept": 1, "questions": 1, "completions": 1, "truncated": 0}
        counts |= {"right": 1, "wrong": 0, "unparseable": 0, "without_teacher_answer": 0}
        counts |= {"dropped": {}, "pairs": 1, "questions_paired": 1}
        counts |= {"examples": 1, "steps": 1, "left_out": {}}
        super()._make(out, name)
        return {} if name == "questions" else counts


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stages, "RayStages", World)
    monkeypatch.setattr(stages, "JobIdentities", FakeIdentities)
    monkeypatch.setattr(cluster, "connected", lambda *given: nullcontext())
    monkeypatch.setattr(World, "made", [])
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(output=tmp_path / "runs"))
    return path


def built() -> list[str]:
    return [call for world in World.made for call in world.calls]


def test_a_cell_that_fails_is_told_of_and_the_others_go_on(
    tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(study), "--trials", "1"]) == 1
    shown = capsys.readouterr().out
    assert "2 of 3 trials are finished" in shown
    assert "failed: broken: it diverged" in shown
    folder = tmp_path / "runs/mine"
    told = json.loads((folder / "study.json").read_text())
    assert told["axes"] == {"method": ["tuned", "broken", "rft"]}
    states = {name: cell["state"] for name, cell in told["cells"].items()}
    assert states == {"tuned": "finished", "broken": "failed", "rft": "finished"}
    assert told["cells"]["broken"]["error"] == "it diverged"
    assert told["cells"]["rft"]["student"] == "round_01"
    assert built().count("tune") == built().count("sample 1 from round_00") == 1
    for cell in ("tuned", "rft"):
        assert (folder / cell / "scores.json").exists()
        assert f"name: {cell}" in (folder / cell / "config.yaml").read_text()
    assert '"event": "failed"' in (folder / "broken/events.jsonl").read_text()


def test_the_same_command_again_makes_only_what_is_missing(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", str(study), "--trials", "1"])
    World.made.clear()
    assert main(["run", str(study), "--trials", "1", "--set", "exclude=[{method: broken}]"]) == 0
    assert built() == []
    assert "2 of 2 trials are finished" in capsys.readouterr().out
    told = json.loads((study.parent / "runs/mine/study.json").read_text())
    assert told["cells"]["broken"]["state"] == "failed"


def test_a_plan_tells_cells_and_artifacts_and_leaves_nothing(
    tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(study), "--trials", "1", "--dry-run"]) == 0
    assert not (tmp_path / "runs").exists()
    shown = capsys.readouterr().out
    assert "3 trials, 0 finished" in shown
    # Three trials share what comes before tuning and the tuned student; two share samples, pairs.
    assert "26 artifacts, of which 12 are distinct, 12 of them to be made" in shown
    main(["run", str(study), "--trials", "1"])
    capsys.readouterr()
    assert main(["plan", str(study)]) == 0
    shown = capsys.readouterr().out
    assert "3 trials, 2 finished" in shown and "2 of them to be made" in shown


def test_a_model_that_is_not_there_is_told_once_for_all_cells(
    tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(study), "--trials", "1", "--set", "student.model=./nowhere"]) == 2
    assert capsys.readouterr().err.count("there is no folder ./nowhere") == 1
    assert not (tmp_path / "runs").exists()
