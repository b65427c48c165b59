"""`sirt watch` on run folders that are finished, stopped, gone or at work."""

import json
import shutil
from pathlib import Path

import pytest

from sirt_ray.artifacts.locks import is_locked, locked
from sirt_ray.cli.main import main
from sirt_ray.report.monitor import RunMonitor, RunStatus, format_event, status_of
from tests.helpers.written_runs import WrittenStages, write_run

TESTS = {
    stage: {"gsm8k": "10", "multiarith": "01"}
    for stage in ("teacher", "baseline", "round_00", "round_01")
}
STARTED = {
    "time": "2026-01-01T00:00:00Z",
    "event": "started",
    "artifact": "round_01/student",
    "message": "started round_01/student",
}


MADE = {
    "time": "2026-01-01T00:00:00Z",
    "event": "finished",
    "artifact": "questions",
    "message": "finished questions: 12 test",
    "seconds": 2.0,
}
OVER = {"event": "finished", "message": "the run is finished"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "mine", WrittenStages(TESTS))


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(written, tmp_path / "mine")
    append(copy, MADE)
    return copy


def append(run: Path, *events: dict[str, object]) -> None:
    with (run / "events.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(event)}\n" for event in events)


def watched(capsys: pytest.CaptureFixture[str], run: Path, *arguments: str) -> tuple[int, str, str]:
    code = main(["watch", str(run), *arguments])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_the_status_of_a_run_follows_its_events() -> None:
    at = RunStatus("at work", "round_01/student", 1767225600.0)
    assert status_of([]) == RunStatus("at work")
    assert status_of([STARTED]) == at
    assert status_of([STARTED, {"event": "waiting", "message": "for room"}]) == at
    assert status_of([STARTED, {**STARTED, "event": "finished"}]) == RunStatus("at work")
    stopped = status_of([STARTED, {"event": "stopped", "message": "it was interrupted"}])
    assert (stopped.state, stopped.stage, stopped.why) == (
        "stopped",
        "round_01/student",
        "it was interrupted",
    )
    assert status_of([STARTED, OVER]) == RunStatus("finished")
    again = {"event": "reused", "artifact": "questions"}
    assert status_of([STARTED, OVER, again]) == RunStatus("at work")


def test_events_are_formatted_as_a_line() -> None:
    finished = {**STARTED, "event": "finished", "message": "finished round_01/student: 4 examples"}
    assert (
        format_event({**finished, "seconds": 75.0})
        == "✓ round_01/student      1 min 15 s  4 examples"
    )
    assert format_event({"event": "waiting", "message": "for room"}) == "! for room"
    assert format_event(STARTED) is None and format_event({"event": "waiting"}) is None


def test_a_finished_run_is_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(run, OVER)
    code, out, _ = watched(capsys, run)
    assert code == 0
    assert out == f"✓ questions                    2 s  12 test\nThe run in {run} is finished\n"


def test_a_stopped_or_dead_run_is_an_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(run, STARTED)
    code, _, error = watched(capsys, run)
    assert code == 1 and "no driver is at work" in error and "round_01/student" in error
    append(run, {"event": "stopped", "message": "it was interrupted"})
    code, _, error = watched(capsys, run)
    assert code == 1 and "has stopped in round_01/student: it was interrupted" in error
    code, _, error = watched(capsys, run / "questions")
    assert code == 2 and "is not the folder of a run" in error


def test_a_run_at_work_shows_its_last_training_step(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append(run, STARTED)
    metrics = run / "round_01/.student.partial/.work/metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    line = {"total_steps": 8, "loss": 0.5, "margin": 0.25, "tokens_per_second": 1234.5}
    metrics.write_text("".join(f"{json.dumps({'step': n, **line})}\n" for n in (1, 2)) + '{"step"')
    assert not is_locked(run)
    with locked(run):
        assert is_locked(run)
        code, out, _ = watched(capsys, run, "--once")
    shown = out.splitlines()[-1]
    assert code == 0 and shown.startswith("▸ round_01/student  ")
    assert shown.endswith("step 2 of 8, loss 0.5, margin 0.25, 1,234 tokens/s")


def test_sampling_is_counted_by_its_finished_blocks(run: Path) -> None:
    partial = run / "round_01/.samples.partial"
    (run / "round_01/samples").rename(partial)
    usage = {"seconds": 2.0, "generated_tokens": 300}
    (partial / ".usage.json").write_text(json.dumps(usage))
    monitor = RunMonitor(run)
    assert monitor.progress("round_01/samples") == "8 completions, 150 tokens/s"
    assert monitor.progress("round_02/samples") == monitor.progress("round_01/pairs") == ""


def test_only_new_events_are_printed(run: Path) -> None:
    monitor = RunMonitor(run)
    assert len(monitor.new_lines()) == 1 and monitor.new_lines() == []
    append(run, {"event": "waiting", "message": "for room"})
    assert monitor.new_lines() == ["! for room"]
    assert monitor.status().state == "at work"  # it has just written an event
