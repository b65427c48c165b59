"""`sirt train` without Ray and DeepSpeed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sirt_ray.cli.main import main
from sirt_ray.training.workdir import last_line
from tests.helpers import tiny

pytestmark = pytest.mark.timeout(300)

WITHOUT = """
import sys
sys.modules["ray"] = sys.modules["deepspeed"] = sys.modules["vllm"] = None
from sirt_ray.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def arguments(assets: Path, out: Path) -> list[str]:
    settings = {
        "refine.learning_rate": "1e-3",
        "refine.batch_size": "2",
        "refine.epochs": "4",
        "resources.checkpoint_every_steps": "5",
        "resources.gpus_per_worker": "0",
    }
    return [
        *(
            "train",
            "dpo",
            "--model",
            str(assets / "base"),
            "--data",
            str(assets / "pairs"),
            "--out",
            str(out),
        ),
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
    ]


def started(assets: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT, *arguments(assets, out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_interrupted_and_continued_is_uninterrupted(tmp_path: Path) -> None:
    tiny.save_student(tmp_path / "base")
    tiny.write_pairs(tmp_path / "pairs", range(16))
    whole, out = tmp_path / "whole", tmp_path / "interrupted"
    assert main(arguments(tmp_path, whole)) == 0

    interrupted = started(tmp_path, out)
    metrics = out / ".student.partial" / ".work" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while (line := last_line(metrics)) is None or line["step"] < 6:
        assert time.monotonic() < deadline and interrupted.poll() is None
        time.sleep(0.005)
    interrupted.send_signal(signal.SIGTERM)
    assert "continues at the last checkpoint" in interrupted.communicate(timeout=60)[1]
    assert interrupted.returncode == 130

    again = started(tmp_path, out)
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert f"The student is {out / 'student'}" in output
    one, two = (load_file(of / "student" / "model.safetensors") for of in (whole, out))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
