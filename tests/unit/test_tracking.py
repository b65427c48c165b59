"""Trackers: what they are told, once each, and that none of them can hold up or end a run."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import job
from rich.console import Console
from written_runs import WrittenStages

from sirt_ray import cli, jobfile
from sirt_ray.artifacts import Store
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import JobConfig
from sirt_ray.core import identity
from sirt_ray.core.interfaces import Counts, Policy
from sirt_ray.core.loop import Loop
from sirt_ray.errors import ConfigError
from sirt_ray.logs import heard_by, tell
from sirt_ray.report.journal import RunJournal
from sirt_ray.tracking import packages
from sirt_ray.tracking.feed import Sent
from sirt_ray.tracking.packages import check_installed
from sirt_ray.tracking.sending import Sender, Trackers
from sirt_ray.tracking.tracker import Examples, Figures, Origin
from sirt_ray.training.workfolder import Tail
from tests.event_files import curves

TESTS = {
    "teacher": {"gsm8k": "1111"},
    "baseline": {"gsm8k": "0000"},
    "round_00": {"gsm8k": "1000"},
    "round_01": {"gsm8k": "1110"},
}
STEPS = [{"step": n, "total_steps": 3, "loss": 1 / n, "margin": 0.1 * n} for n in (1, 2, 3)]


class Remembering:
    """A tracker of these tests: the boundary to the packages, which are not ours."""

    def __init__(self) -> None:
        self.figures: list[tuple[str, Figures, int]] = []
        self.shown: list[str] = []
        self.files: list[str] = []
        self.ended: list[bool] = []

    def log(self, place: str, figures: Figures, step: int) -> None:
        self.figures.append((place, figures, step))

    def examples(self, place: str, rows: Examples, step: int) -> None:
        self.shown.append(place)

    def file(self, path: Path) -> None:
        self.files.append(path.name)

    def flush(self) -> None: ...

    def close(self, failed: bool) -> None:
        self.ended.append(failed)


class SteppingStages(WrittenStages):
    """Tells the steps of its trainings, as the driver does that watches the workers, all but the
    last; `metrics.jsonl` has them all."""

    def tune(self, out: Path, base: Policy, demonstrations: Any) -> Counts:
        self._train(out, "round_00/student")
        return super().tune(out, base, demonstrations)

    def refine(self, out: Path, *given: Any) -> Counts:
        self._train(out, "round_01/student")
        return super().refine(out, *given)

    def _train(self, out: Path, name: str) -> None:
        (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in STEPS))
        for line in STEPS[:-1]:
            tell(logging.DEBUG, "a step", "step", artifact=name, line=line)


def tracked_job(*names: str) -> JobConfig:
    return job(refine={"rounds": 1}, tracking=list(names))


def run(root: Path, *names: str) -> list[str]:
    """A run with these trackers, from beginning to end; what it warned of."""
    resolved, warnings = tracked_job(*names), list[str]()
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.yaml").write_text(jobfile.dump(resolved))
    journal = RunJournal(root, Console(quiet=True))

    def warn(name: str, text: str) -> None:
        journal.event("tracker_failed", text)
        warnings.append(text)

    # Longer than a test may take: no tracker here is to be waited for.
    journal.also.append(Trackers(resolved, root, warn, end_seconds=600))
    with heard_by(journal):
        store = Store(root, tell=journal.artifact)
        outcome = Loop(resolved, SteppingStages(TESTS), store, journal).run()
    journal.finish(outcome.scores)
    return warnings


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Remembering]:
    """Each opened tracker."""
    opened: list[Remembering] = []

    def open(origin: Origin) -> Remembering:
        assert origin.settings["refine.rounds"] == 1
        opened.append(Remembering())
        return opened[-1]

    monkeypatch.setitem(packages.TRACKERS, "mlflow", open)
    return opened


def test_every_step_stage_and_score_is_told_once(tmp_path: Path, told: list[Remembering]) -> None:
    assert run(tmp_path / "mine", "mlflow") == []
    (tracker,) = told
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


def test_a_run_that_is_started_again_tells_nothing_twice(
    tmp_path: Path, told: list[Remembering]
) -> None:
    run(tmp_path / "mine", "mlflow")
    run(tmp_path / "mine", "mlflow")
    assert len(told) == 1


def test_a_tracker_that_is_named_later_hears_all_that_was(
    tmp_path: Path, told: list[Remembering]
) -> None:
    run(tmp_path / "early", "mlflow")
    run(tmp_path / "late")
    run(tmp_path / "late", "mlflow")
    early, late = told
    assert late.figures == early.figures and late.shown == early.shown


def test_no_step_is_told_again_after_a_kill(tmp_path: Path) -> None:
    tracker = Remembering()
    sent = Sent(tmp_path / "sent.json", steps={"round_01/student": 2})
    sent.save()
    sender = Sender("mlflow", lambda sent: tracker, tmp_path, print)
    sender.put("step", {"artifact": "x/student", "line": STEPS[0]})
    sender.end(False)
    assert Sent.of(tmp_path / "tracking" / "mlflow.json").steps == {"x/student": 1}
    (tmp_path / "sent.json").rename(tmp_path / "tracking" / "mlflow.json")
    again = Sender("mlflow", lambda sent: tracker, tmp_path, print)
    for line in STEPS:
        again.put("step", {"artifact": "round_01/student", "line": line})
    again.end(False)
    assert [step for place, _, step in tracker.figures if place == "round_01/student"] == [3]


def test_the_identity_of_artifacts_knows_no_tracker() -> None:
    questions = {"rows": "same"}
    one, other = tracked_job("tensorboard"), tracked_job("mlflow", "wandb")
    assert identity.questions(one, questions) == identity.questions(other, questions)
    assert identity.tuned(one, "base", Any) == identity.tuned(other, "base", Any)
    assert identity.trained(one.refine) == identity.trained(other.refine)


def test_tensorboard_is_the_default_and_an_unknown_name_is_refused(tmp_path: Path) -> None:
    assert job().tracking == ["tensorboard"]
    (tmp_path / "job.yaml").write_text(jobfile.dump(job()).replace("- tensorboard", "- tensorbord"))
    with pytest.raises(ConfigError, match=r"tracking\.0"):
        jobfile.load(tmp_path / "job.yaml", (), REGISTRY)


def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "mlflow" else True)
    check_installed(["tensorboard", "wandb"])
    with pytest.raises(ConfigError, match=r"names mlflow.*pip install 'sirt-ray\[mlflow\]'"):
        check_installed(["tensorboard", "mlflow"])


def test_a_plan_says_that_a_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    quickstart = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"
    assert cli.main(["plan", str(quickstart), "--set", "tracking=[wandb]"]) == 2
    assert "pip install 'sirt-ray[wandb]'" in capsys.readouterr().err


class Raising(Remembering):
    def __init__(self, when: str) -> None:
        super().__init__()
        self._when = when
        self._raise_in("opening")

    def _raise_in(self, when: str) -> None:
        if when == self._when:
            raise ConnectionError("the server is gone\nand more")

    def log(self, place: str, figures: Figures, step: int) -> None:
        self._raise_in("logging")

    def close(self, failed: bool) -> None:
        self._raise_in("ending")


@pytest.mark.parametrize("when", ["opening", "logging", "ending"])
def test_a_tracker_that_raises_is_warned_of_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setitem(packages.TRACKERS, "mlflow", lambda origin: Raising(when))
    (warning,) = run(tmp_path / "mine", "mlflow")
    assert "mlflow is told nothing more" in warning
    assert "ConnectionError: the server is gone." in warning
    assert (tmp_path / "mine" / "scores.json").exists()


@pytest.mark.parametrize("most_waiting", [2, 1000])
def test_a_tracker_that_hangs_is_given_up(tmp_path: Path, most_waiting: int) -> None:
    """By what waits for it, or at the end of the run."""
    release, warnings = threading.Event(), list[str]()

    def hang(sent: Sent) -> Remembering:
        release.wait()
        return Remembering()

    sender = Sender(
        "wandb",
        hang,
        tmp_path,
        lambda name, text: warnings.append(text),
        end_seconds=0.05,
        most_waiting=most_waiting,
    )
    for line in STEPS * 3:
        sender.put("step", {"artifact": "x/student", "line": line})
    sender.end(failed=False)
    release.set()
    (warning,) = warnings
    assert ("does not keep up" in warning) == (most_waiting == 2)


def test_a_disk_that_takes_nothing_is_the_trackers_trouble_alone(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "tensorboard").write_text("a file in the folder's place")
    (warning,) = run(root, "tensorboard")
    assert "tensorboard is told nothing more" in warning
    assert (root / "scores.json").exists()


def test_secrets_do_not_reach_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "sk-verysecret")
    seen: list[Mapping[str, Any]] = []

    def open(origin: Origin) -> Remembering:
        seen.append(origin.settings)
        return Remembering()

    monkeypatch.setitem(packages.TRACKERS, "mlflow", open)
    resolved = tracked_job("mlflow").model_copy(update={"output": "runs/sk-verysecret"})
    trackers = Trackers(resolved, tmp_path, lambda name, text: None)
    trackers.handle(logging.makeLogRecord({"event": "rolled_back", "fields": {"version": "x"}}))
    trackers.handle(logging.makeLogRecord({"event": "stopped", "fields": {}}))
    assert seen[0]["output"] == "runs/***"


def test_tensorboard_has_the_curves_of_every_training_and_the_scores_over_rounds(
    tmp_path: Path,
) -> None:
    assert run(tmp_path / "mine", "tensorboard") == []
    run(tmp_path / "mine", "tensorboard")
    folder = tmp_path / "mine" / "tensorboard"
    loss = curves(folder / "round_01" / "student")["loss"]
    assert loss == {line["step"]: pytest.approx(line["loss"]) for line in STEPS}
    assert curves(folder)["accuracy/gsm8k/cot"] == {0: 0.25, 1: 0.75}
    assert curves(folder / "round_01" / "pairs")["record/pairs"][1] > 0


def test_tensorboard_itself_reads_them(tmp_path: Path) -> None:
    module = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard, the viewer, is not installed",
    )
    run(tmp_path / "mine", "tensorboard")
    folder = tmp_path / "mine" / "tensorboard"

    def read(place: str) -> Any:
        return module.EventAccumulator(str(folder / place)).Reload()

    loss = read("round_01/student").Scalars("loss")
    assert [(point.step, point.value) for point in loss] == [
        (line["step"], pytest.approx(line["loss"])) for line in STEPS
    ]
    texts = read("round_01/evaluation").Tags()["tensors"]
    assert "example 0/text_summary" in texts


def test_mlflow_has_a_run_for_each_round_and_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert run(tmp_path / "mine", "mlflow") == []
    ids = Sent.of(tmp_path / "mine/tracking/mlflow.json").ids
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    student, round = (client.get_run(ids[name]) for name in ("round_01/student", "round_01"))
    assert student.data.tags["mlflow.parentRunId"] == ids["round_01"]
    assert round.data.tags["mlflow.parentRunId"] == ids[""]
    loss = client.get_metric_history(ids["round_01/student"], "loss")
    assert [(point.step, point.value) for point in loss] == [
        (line["step"], line["loss"]) for line in STEPS
    ]
    whole = client.get_run(ids[""])
    assert whole.info.status == "FINISHED" and whole.data.params["refine.beta"] == "0.1"
    assert {file.path for file in client.list_artifacts(ids[""])} == {"config.yaml", "scores.json"}


def test_wandb_keeps_a_run_for_each_round_offline(tmp_path: Path) -> None:
    """In a process of its own: it starts a service, which ends with the process."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    code = (
        "import sys, test_tracking; from pathlib import Path;"
        "print(test_tracking.run(Path(sys.argv[1]), 'wandb'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mine")],
        env=os.environ
        | {
            "WANDB_MODE": "offline",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
    id = Sent.of(tmp_path / "mine/tracking/wandb.json").ids["id"]
    folders = (tmp_path / "mine" / "wandb").glob("offline-run-*")
    kept = {path.name.split(f"{id}-")[-1] for path in folders}
    assert {"run", "round_00", "round_01", "teacher", "baseline"} <= kept


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
