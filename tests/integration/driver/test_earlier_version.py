"""A run that version 0.1.0 began is resumed, and its student has the scores that it had there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import TESTS

STORED = TESTS / "golden" / "run_0.1.0"

pytestmark = [pytest.mark.ray, pytest.mark.timeout(540)]


def test_a_run_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    run_dir = shutil.copytree(STORED, tmp_path / "stored_run")
    for name in ("round_00", "round_01"):
        shutil.rmtree(run_dir / name)
    (run_dir / "scores.json").unlink()
    kept = {path: path.read_bytes() for path in run_dir.rglob("record.json")}
    assert len(kept) == 4  # questions, demonstrations, and two evaluations
    command = [sys.executable, "-m", "sirt_ray", "run", str(run_dir / "config.yaml")]
    for setting in (f"output={tmp_path}", "refine.rounds=0"):  # One training is enough here.
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.read_bytes() for path in kept} == kept
    scores = json.loads((run_dir / "scores.json").read_text())
    stored = json.loads((STORED / "scores.json").read_text())
    assert scores == {stage: stored[stage] for stage in ("teacher", "baseline", "round_00")}
