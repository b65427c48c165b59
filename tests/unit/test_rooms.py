"""The import rules, at rest (import-linter) and at run time."""

import subprocess
import sys

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

HEAVY = ("ray", "vllm", "torch", "deepspeed", "transformers", "datasets")


def test_imports_go_downward_only() -> None:
    assert lint_imports(config_filename="pyproject.toml") == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize(
    "module",
    ["sirt_ray.config", "sirt_ray.core.loop", "sirt_ray.cli", "sirt_ray.report.command"],
)
def test_the_method_and_the_command_line_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
