"""`sirt doctor` on the machine of the tests, which is a good one."""

import json
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import psutil
import pytest

MARK = "SIRT_DOCTOR_TEST"

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def of_this_test(mark: str) -> list[str]:
    """Command lines of all processes with the mark in their environment."""
    found: list[str] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_a_good_machine_has_no_problem_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [sys.executable, "-m", "sirt_ray", "doctor", "--json"],
        # Ray's folder is not moved: the names of its sockets must be short.
        env=os.environ | {MARK: mark, "TMPDIR": str(tmp_path), "RAY_TMPDIR": tempfile.gettempdir()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    by_check = {finding["check"]: finding for finding in report["findings"]}
    assert report["ok"] and {"python", "packages", "compilers", "disk", "hub"} <= set(by_check)
    assert "8 questions answered" in by_check["Serve + vLLM"]["found"]
    assert "2 steps trained" in by_check["DeepSpeed"]["found"]
    assert all(finding["cure"] for finding in report["findings"] if finding["level"] != "ok")
    assert of_this_test(mark) == []
    assert not list(tmp_path.glob("sirt-doctor-*")) and not (tmp_path / "runs").exists()
