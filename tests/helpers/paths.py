"""Paths of the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "jobs"
TESTS = ROOT / "tests"

JOB_FILES = [path for path in sorted(JOBS.glob("**/*.yaml")) if path.parent.name != "base"]
"""Jobs and studies that can be run; what is in a folder `base` is only the base of others."""
