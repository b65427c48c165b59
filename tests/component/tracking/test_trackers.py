"""The trackers themselves: what their own packages, or readers of their files, find in them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sirt_ray.tracking.sender import Ledger
from tests.helpers.event_files import curves
from tests.helpers.paths import ROOT
from tests.helpers.tracked_runs import STEPS, run


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
    ids = Ledger.load(tmp_path / "mine/tracking/mlflow.json").ids
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    student, first_round = (client.get_run(ids[name]) for name in ("round_01/student", "round_01"))
    assert student.data.tags["mlflow.parentRunId"] == ids["round_01"]
    assert first_round.data.tags["mlflow.parentRunId"] == ids[""]
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
        "import sys; from pathlib import Path; from tests.helpers import tracked_runs;"
        "print(tracked_runs.run(Path(sys.argv[1]), 'wandb'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mine")],
        env=os.environ
        | {
            "WANDB_MODE": "offline",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
    run_id = Ledger.load(tmp_path / "mine/tracking/wandb.json").ids["id"]
    folders = (tmp_path / "mine" / "wandb").glob("offline-run-*")
    kept = {path.name.split(f"{run_id}-")[-1] for path in folders}
    assert {"run", "round_00", "round_01", "teacher", "baseline"} <= kept
