"""The import rules, at rest (import-linter) and at run time."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("ray", "vllm", "torch", "deepspeed", "transformers", "datasets")


def test_imports_go_downward_only() -> None:
    # In a process of its own: it silences the loggers of the one that it runs in.
    lint = [str(Path(sys.executable).with_name("lint-imports")), "--config", "pyproject.toml"]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module",
    ["sirt_ray.config.job", "sirt_ray.core.loop", "sirt_ray.cli.main", "sirt_ray.report.command"],
)
def test_the_method_and_the_command_line_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_driver_does_not_wait_for_torch() -> None:
    code = (
        "import sys, sirt_ray.driver.checks, sirt_ray.on_ray.stages; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
