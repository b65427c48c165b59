"""Trackers: what they receive, once each, and that none of them can hold up or end a run."""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sirt_ray.artifacts.store import Artifact
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.cli import main
from sirt_ray.config import load
from sirt_ray.core import steps
from sirt_ray.core.interfaces import Model, Policy
from sirt_ray.errors import ConfigError
from sirt_ray.tracking import sender as packages
from sirt_ray.tracking.base import Examples, Figures, RunInfo
from sirt_ray.tracking.sender import Ledger, Trackers, check_installed
from sirt_ray.training.workdir import Tail
from tests.helpers.fakes import job
from tests.helpers.paths import JOBS
from tests.helpers.tracked_runs import STEPS, run, tracked_job


class Remembering:
    """A tracker of these tests: the boundary to the packages, which are not ours."""

    def __init__(self) -> None:
        self.figures: list[tuple[str, Figures, int]] = []
        self.shown: list[str] = []
        self.files: list[str] = []
        self.ended: list[bool] = []

    def log(self, scope: str, figures: Figures, step: int) -> None:
        self.figures.append((scope, figures, step))

    def examples(self, scope: str, rows: Examples, step: int) -> None:
        self.shown.append(scope)

    def file(self, path: Path) -> None:
        self.files.append(path.name)

    def flush(self) -> None: ...

    def close(self, failed: bool) -> None:
        self.ended.append(failed)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Remembering]:
    """Each opened tracker."""
    found: list[Remembering] = []

    def remember(info: RunInfo) -> Remembering:
        assert info.settings["refine.rounds"] == 1
        found.append(Remembering())
        return found[-1]

    monkeypatch.setitem(packages.TRACKERS, "mlflow", remember)
    return found


def test_every_step_stage_and_score_is_sent_once(tmp_path: Path, opened: list[Remembering]) -> None:
    assert run(tmp_path / "mine", "mlflow") == []
    (tracker,) = opened
    steps = [(step, figures) for place, figures, step in tracker.figures if "loss" in figures]
    curve = [(line["step"], {k: line[k] for k in ("loss", "margin")}) for line in STEPS]
    assert steps == curve * 2
    scores = [
        (place, step, figures["accuracy/gsm8k/cot"])
        for place, figures, step in tracker.figures
        if "accuracy/gsm8k/cot" in figures
    ]
    assert scores == [("teacher", 0, 1.0), ("baseline", 0, 0.0), ("", 0, 0.25), ("", 1, 0.75)]
    counts = {place: figures for place, figures, _ in tracker.figures if "record/steps" in figures}
    assert counts["round_01/student"]["record/examples"] == 4.0
    assert "round_01/evaluation" in tracker.shown
    assert tracker.files == ["config.yaml", "scores.json"] and tracker.ended == [False]


def test_a_run_that_is_started_again_sends_nothing_twice(
    tmp_path: Path, opened: list[Remembering]
) -> None:
    run(tmp_path / "mine", "mlflow")
    run(tmp_path / "mine", "mlflow")
    assert len(opened) == 1


def test_a_tracker_that_is_named_later_receives_all_that_was(
    tmp_path: Path, opened: list[Remembering]
) -> None:
    run(tmp_path / "early", "mlflow")
    run(tmp_path / "late")
    run(tmp_path / "late", "mlflow")
    early, late = opened
    assert late.figures == early.figures and late.shown == early.shown


def event(name: str, **fields: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"event": name, "fields": fields})


def test_no_step_is_sent_again_after_a_kill(tmp_path: Path, opened: list[Remembering]) -> None:
    ledger = tmp_path / "tracking" / "mlflow.json"
    first = Trackers(tracked_job("mlflow"), tmp_path, print)
    first.handle(event("step", artifact="x/student", line=STEPS[0]))
    first.handle(event("stopped"))
    assert Ledger.load(ledger).steps == {"x/student": 1}
    Ledger(ledger, steps={"round_01/student": 2}).save()
    again = Trackers(tracked_job("mlflow"), tmp_path, print)
    for line in STEPS:
        again.handle(event("step", artifact="round_01/student", line=line))
    again.handle(event("stopped"))
    assert [step for _, _, step in opened[-1].figures] == [3]


def test_the_identity_of_artifacts_knows_no_tracker() -> None:
    questions = {"rows": "same"}
    one, other = tracked_job("tensorboard"), tracked_job("mlflow", "wandb")
    base, made = Model(Policy("baseline", "base"), "base"), Artifact("x", Path("x"), "0", {})
    assert steps.questions(one, questions).inputs == steps.questions(other, questions).inputs
    assert steps.tuned(one, base, made).inputs == steps.tuned(other, base, made).inputs
    assert steps.trained(one.refine) == steps.trained(other.refine)


def test_tensorboard_is_the_default_and_an_unknown_name_is_refused(tmp_path: Path) -> None:
    assert job().tracking == ["tensorboard"]
    (tmp_path / "job.yaml").write_text(load.dump(job()).replace("- tensorboard", "- tensorbord"))
    with pytest.raises(ConfigError, match=r"tracking\.0"):
        load.load(tmp_path / "job.yaml", (), REGISTRY)


def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "mlflow" else True)
    check_installed(["tensorboard", "wandb"])
    with pytest.raises(ConfigError, match=r"names mlflow.*pip install 'sirt-ray\[mlflow\]'"):
        check_installed(["tensorboard", "mlflow"])


def test_a_plan_says_that_a_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    quickstart = JOBS / "quickstart.yaml"
    assert main.main(["plan", str(quickstart), "--set", "tracking=[wandb]"]) == 2
    assert "pip install 'sirt-ray[wandb]'" in capsys.readouterr().err


class Raising(Remembering):
    def __init__(self, when: str) -> None:
        super().__init__()
        self._when = when
        self._raise_in("opening")

    def _raise_in(self, when: str) -> None:
        if when == self._when:
            raise ConnectionError("the server is gone\nand more")

    def log(self, scope: str, figures: Figures, step: int) -> None:
        self._raise_in("logging")

    def close(self, failed: bool) -> None:
        self._raise_in("ending")


@pytest.mark.parametrize("when", ["opening", "logging", "ending"])
def test_a_tracker_that_raises_is_warned_of_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setitem(packages.TRACKERS, "mlflow", lambda info: Raising(when))
    (warning,) = run(tmp_path / "mine", "mlflow")
    assert "mlflow receives nothing more" in warning
    assert "ConnectionError: the server is gone." in warning
    assert (tmp_path / "mine" / "scores.json").exists()


@pytest.mark.parametrize("max_queued", [2, 1000])
def test_a_tracker_that_hangs_is_dropped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_queued: int
) -> None:
    """By what is queued, or at the end of the run; what waits behind it is dropped too."""
    started, release, warnings = threading.Event(), threading.Event(), list[tuple[str, str]]()

    def hang(info: RunInfo) -> Remembering:
        started.set()
        release.wait()
        return Remembering()

    monkeypatch.setitem(packages.TRACKERS, "wandb", hang)
    trackers = Trackers(
        tracked_job("wandb", "mlflow"),
        tmp_path,
        lambda name, text: warnings.append((name, text)),
        end_seconds=0.05,
        max_queued=max_queued,
    )
    trackers.handle(event("step", artifact="x/student", line=STEPS[0]))
    assert started.wait(30)
    for line in STEPS * 3:
        trackers.handle(event("step", artifact="x/student", line=line))
    trackers.handle(event("stopped"))
    release.set()
    (first, wandb), (second, mlflow) = warnings
    assert (first, second) == ("wandb", "mlflow")
    reason = "does not keep up" if max_queued == 2 else "has not taken everything"
    assert f": it {reason}" in wandb and f": wandb, which is before it, {reason}" in mlflow


def test_a_tracker_that_raises_leaves_the_others_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[Remembering]
) -> None:
    monkeypatch.setitem(packages.TRACKERS, "wandb", lambda info: Raising("logging"))
    (warning,) = run(tmp_path / "mine", "wandb", "mlflow")
    assert "wandb receives nothing more" in warning
    assert opened[0].ended == [False] and "round_01/evaluation" in opened[0].shown


def test_a_disk_that_takes_nothing_is_the_trackers_trouble_alone(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "tensorboard").write_text("a file in the folder's place")
    (warning,) = run(root, "tensorboard")
    assert "tensorboard receives nothing more" in warning
    assert (root / "scores.json").exists()


def test_secrets_do_not_reach_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "sk-verysecret")
    seen: list[Mapping[str, Any]] = []

    def remember(info: RunInfo) -> Remembering:
        seen.append(info.settings)
        return Remembering()

    monkeypatch.setitem(packages.TRACKERS, "mlflow", remember)
    resolved = tracked_job("mlflow").model_copy(update={"output": "runs/sk-verysecret"})
    trackers = Trackers(resolved, tmp_path, lambda name, text: None)
    trackers.handle(event("rolled_back", version="x"))
    trackers.handle(event("stopped"))
    assert seen[0]["output"] == "runs/***"


def test_the_tail_of_a_file_has_each_whole_line_once(tmp_path: Path) -> None:
    path, tail = tmp_path / "lines", Tail(tmp_path / "lines")
    assert tail.new() == []
    path.write_text('{"step": 1}\n{"st')
    assert tail.new() == [{"step": 1}]
    with path.open("a") as file:
        file.write('ep": 2}\n')
    assert tail.new() == [{"step": 2}] and tail.new() == []
    path.with_suffix(".partial").write_text('{"step": 1}\n')
    path.with_suffix(".partial").replace(path)
    assert tail.new() == [{"step": 1}]
