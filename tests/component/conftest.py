"""An S3 server for component tests, which compute in one thread: their models are tiny, and
threads that wait for each other take minutes while something else uses the cores, too."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sirt_ray.storage import object_store
from tests.helpers.s3_server import ALWAYS_ALLOWED, allow, environment, file_system, s3_server

os.environ["OMP_NUM_THREADS"] = "1"  # Read by torch when it is imported.


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Start one server for all tests that need one; each uses its own bucket."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def node(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], AbstractContextManager[None]]]:
    """Return a context manager: while its block runs, the process is another node with its own
    disk."""
    for name, value in environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    object_store._store.cache_clear()

    @contextmanager
    def be(name: str) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setenv("SIRT_CACHE", str(tmp_path / name))
            yield

    yield be
    allow(s3_endpoint, ALWAYS_ALLOWED)


@pytest.fixture
def bucket(s3_endpoint: str, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.nodeid)):x}"
    file_system(s3_endpoint).create_dir(name)
    return name


@pytest.fixture
def owner(s3_endpoint: str) -> Any:
    """Return the file system of the buckets' owner."""
    return file_system(s3_endpoint)
