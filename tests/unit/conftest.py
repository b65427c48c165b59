"""Unit tests import their fakes by name, and compute in one thread: their models are tiny, and
threads that wait for each other take minutes where something else uses the cores, too."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # Read by torch when it is imported.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """One server for all tests that need one; each takes a bucket of its own."""
    from tests.s3_server import s3_server

    with s3_server() as endpoint:
        yield endpoint
