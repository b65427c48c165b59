"""A small run of the whole method, as a user runs it: `sirt run` in a process of its own."""

import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import JOBS

SMALL = {
    "data.num_train": 40,
    "data.num_validation": 16,
    "data.num_test": 24,
    "data.evaluate": "[word_problems, letter_choices]",
    "tune.max_demonstrations": 32,
    "tune.epochs": 12,
    "refine.rounds": 1,
    "refine.num_cot": 6,
    "refine.num_plain": 1,
    "refine.pairs.rule": "both",
    "resources.block_size": 8,
    "resources.trainer.checkpoint_every_steps": 4,
}


def command(output: Path, job: str = "quickstart.yaml", **settings: object) -> list[str]:
    line = [sys.executable, "-m", "sirt_ray", "run", str(JOBS / job), "--set", f"output={output}"]
    for name, value in settings.items():
        line += ["--set", f"{name}={value}"]
    return line


def run(output: Path, job: str = "quickstart.yaml", **settings: object) -> str:
    done = subprocess.run(
        command(output, job, **settings), capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
