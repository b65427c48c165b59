"""The method's order, its resuming and its roll-back, against a fake world and a real store."""

from pathlib import Path
from typing import Any

import pytest

from sirt_ray.artifacts.store import Store
from sirt_ray.core.interfaces import Counts
from sirt_ray.core.loop import Outcome
from sirt_ray.errors import ArtifactError
from tests.helpers.fakes import FakeStages, Heard, Killed, dry_run, job, run_fake

WHOLE = [
    "questions",
    "demonstrate",
    "evaluate teacher",
    "evaluate baseline",
    "tune",
    "evaluate round_00",
    "sample 1 from round_00",
    "pair 1",
    "reference of round_00",
    "refine 1 from round_00",
    "evaluate round_01",
    "sample 2 from round_01",
    "pair 2",
    "reference of round_01",
    "refine 2 from round_01",
    "evaluate round_02",
]


def run(root: Path, stages: FakeStages, heard: Heard | None = None, **changes: object) -> Outcome:
    force = bool(changes.pop("force", False))
    return run_fake(job(**changes), stages, Store(root, force=force), heard)


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files
    }


def test_the_steps_run_in_the_papers_order(tmp_path: Path) -> None:
    stages, heard = FakeStages(), Heard()
    outcome = run(tmp_path, stages, heard)
    assert stages.calls == WHOLE
    assert outcome.student.version == "round_02"
    assert outcome.student.path == str(tmp_path / "round_02/student")
    assert list(outcome.scores) == ["teacher", "baseline", "round_00", "round_01", "round_02"]
    assert heard.stages == list(outcome.scores)


def test_a_second_run_builds_nothing_and_says_the_same(tmp_path: Path) -> None:
    first = run(tmp_path, FakeStages())
    before = snapshot(tmp_path)
    again = FakeStages()
    assert run(tmp_path, again) == first
    assert again.calls == []
    assert snapshot(tmp_path) == before


def test_a_file_of_demonstrations_is_no_teacher_to_evaluate(tmp_path: Path) -> None:
    stages, heard = FakeStages(), Heard()
    teacher = {"demonstrations": {"path": "answers.jsonl"}}
    outcome = run(tmp_path, stages, heard, teacher=teacher)
    assert stages.calls == [call for call in WHOLE if call != "evaluate teacher"]
    assert list(outcome.scores) == ["baseline", "round_00", "round_01", "round_02"]
    assert [kind for kind, _ in heard.events] == ["teacher_not_evaluated"]
    quiet = Heard()
    run(tmp_path, FakeStages(), quiet, teacher=teacher, evaluation={"teacher": False})
    assert quiet.events == []


class Worried(FakeStages):
    """A world whose second refinement raises a warning."""

    def refine(self, out: Path, *, round_number: int, **needs: Any) -> Counts:
        counts = super().refine(out, round_number=round_number, **needs)
        warnings = [{"name": "chosen_logp_falls", "step": 7, "message": "do this"}]
        return {**counts, "warnings": warnings if round_number == 2 else []}


def test_warnings_of_a_training_are_told(tmp_path: Path) -> None:
    for _ in ("built", "found"):
        heard = Heard()
        run(tmp_path, Worried(), heard)
        assert heard.events == [("chosen_logp_falls", "round_02/student, step 7: do this")]


@pytest.mark.parametrize("stage", WHOLE)
def test_a_run_killed_in_a_stage_resumes_in_that_stage(tmp_path: Path, stage: str) -> None:
    dying = FakeStages(kill_in=stage)
    with pytest.raises(Killed):
        run(tmp_path, dying)
    finished = [path.parent for path in tmp_path.rglob("record.json")]
    before = {str(path): snapshot(path) for path in finished}
    stages = FakeStages()
    run(tmp_path, stages)
    assert stages.calls == WHOLE[WHOLE.index(stage) :]
    assert {str(path): snapshot(path) for path in finished} == before
    assert not list(tmp_path.rglob("*.partial"))


def test_what_a_killed_stage_left_is_there_when_it_continues(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, FakeStages(kill_in="tune"))
    assert (tmp_path / "round_00/.student.partial/first").exists()
    # With another learning rate, what is half-made is not the same artifact: it starts anew.
    (tmp_path / "round_00/.student.partial/step_40").write_text("checkpoint")
    run(tmp_path, FakeStages(), tune={"learning_rate": 1e-3})
    assert not (tmp_path / "round_00/student/step_40").exists()


def test_a_worse_round_is_rolled_back_and_the_next_starts_from_the_kept_one(tmp_path: Path) -> None:
    stages, heard = FakeStages(held_out={"round_00": 60, "round_01": 30, "round_02": 62}), Heard()
    outcome = run(tmp_path, stages, heard)
    assert "sample 2 from round_00" in stages.calls
    assert "refine 2 from round_00" in stages.calls
    assert outcome.rolled_back == ("round_01",)
    assert outcome.student.version == "round_02"
    assert [kind for kind, _ in heard.events] == ["rolled_back"]
    assert "60.0%" in heard.events[0][1]


def test_a_fall_within_its_noise_is_kept(tmp_path: Path) -> None:
    outcome = run(tmp_path, FakeStages(held_out={"round_00": 60, "round_01": 50, "round_02": 50}))
    assert outcome.rolled_back == ()


def test_roll_back_can_be_turned_off(tmp_path: Path) -> None:
    stages = FakeStages(held_out={"round_00": 60, "round_01": 10})
    outcome = run(tmp_path, stages, refine={"rounds": 1, "roll_back": False})
    assert outcome.student.version == "round_01"


def test_the_reference_is_the_student_before_the_round_unless_the_job_fixes_it(
    tmp_path: Path,
) -> None:
    stages = FakeStages(held_out={"round_00": 60, "round_01": 62, "round_02": 30})
    outcome = run(tmp_path, stages, refine={"rounds": 3, "reference": "initial"})
    assert [call for call in stages.calls if "reference" in call or "refine" in call] == [
        "reference of round_00",
        "refine 1 from round_00",
        "reference of round_00",
        "refine 2 from round_01 held to round_00",
        "reference of round_00",
        "refine 3 from round_01 held to round_00",
    ]
    assert outcome.rolled_back == ("round_02",)


def test_another_reference_changes_nothing_before_the_second_round(tmp_path: Path) -> None:
    run(tmp_path, FakeStages())
    stages = FakeStages()
    with pytest.raises(ArtifactError, match="round_02/reference"):
        run(tmp_path, stages, refine={"rounds": 2, "reference": "initial"})
    assert stages.calls == []


def test_a_changed_setting_is_refused_with_field_and_ways_out(tmp_path: Path) -> None:
    run(tmp_path, FakeStages())
    before = snapshot(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        run(tmp_path, FakeStages(), refine={"rounds": 2, "beta": 0.3})
    message = str(caught.value)
    assert "round_01/student" in message
    assert "refine.beta: 0.1 -> 0.3" in message
    assert "`name`" in message and "--force" in message
    assert snapshot(tmp_path) == before


def test_redo_builds_again_what_the_setting_changes_and_nothing_else(tmp_path: Path) -> None:
    run(tmp_path, FakeStages())
    stages = FakeStages()
    run(tmp_path, stages, refine={"rounds": 2, "beta": 0.3}, force=True)
    assert stages.calls == [
        "refine 1 from round_00",
        "evaluate round_01",
        "sample 2 from round_01",
        "pair 2",
        "reference of round_01",
        "refine 2 from round_01",
        "evaluate round_02",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"resources": {"trainer": {"num_workers": 4, "zero_stage": 3}, "block_size": 7}},
        {"output": "elsewhere"},
        {"data": {"train": ["gsm8k"], "evaluate": ["gsm8k"], "root": "/another/place"}},
        {"refine": {"rounds": 2, "roll_back_stderrs": 3.0}},
    ],
)
def test_where_and_how_fast_is_no_identity(tmp_path: Path, change: dict[str, object]) -> None:
    run(tmp_path, FakeStages())
    again = FakeStages()
    run(tmp_path, again, **change)
    assert again.calls == []


def test_settings_that_came_later_leave_no_trace_at_their_defaults(tmp_path: Path) -> None:
    """What was made before there were such settings is still what the job asks for."""
    run(tmp_path, FakeStages())
    stated = "".join(path.read_text() for path in tmp_path.rglob("record.json"))
    for setting in ("with_demonstrations", "even_rounds", "start", "tasks", "fraction", "skip"):
        assert f'"{setting}"' not in stated


def test_more_rounds_extend_a_finished_run(tmp_path: Path) -> None:
    run(tmp_path, FakeStages(), refine={"rounds": 1})
    stages = FakeStages()
    run(tmp_path, stages, refine={"rounds": 2})
    assert stages.calls == WHOLE[WHOLE.index("sample 2 from round_01") :]


def test_a_survey_builds_nothing_and_tells_how_each_artifact_stands(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, FakeStages(kill_in="tune"))
    before = snapshot(tmp_path)
    planned = dry_run(job(), Store(tmp_path))
    assert snapshot(tmp_path) == before
    states = {status.name: status.state for status in planned.statuses}
    assert states["demonstrations"] == "finished"
    assert states["round_00/student"] == "partial"
    assert states["round_02/student"] == "missing"
    planned.raise_if_stale()
