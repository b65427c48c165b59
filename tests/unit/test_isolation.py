"""What `tests/unit/conftest.py` enforces, and that it does."""

import importlib
import os
import socket
import subprocess
import sys

import pytest

from tests.unit.conftest import FRAMEWORKS


def test_no_framework_is_loaded(request: pytest.FixtureRequest) -> None:
    folder = request.path.parent
    if not all(item.path.is_relative_to(folder) for item in request.session.items):
        pytest.skip("tests of other folders run in this process")
    assert FRAMEWORKS.isdisjoint(sys.modules)


@pytest.mark.parametrize("name", ["torch", "ray", "vllm", "transformers"])
def test_no_framework_can_be_imported(name: str) -> None:
    if name in sys.modules:
        pytest.skip("another test of this process has imported it")
    with pytest.raises(pytest.fail.Exception, match=f"imports {name}"):
        importlib.import_module(name)


def test_no_process_can_be_started() -> None:
    with pytest.raises(pytest.fail.Exception, match="starts a process"):
        subprocess.run([sys.executable, "-c", ""], check=True)
    with pytest.raises(pytest.fail.Exception, match="starts a process"):
        os.fork()


def test_no_port_can_be_opened() -> None:
    with socket.socket() as sock, pytest.raises(pytest.fail.Exception, match="opens a port"):
        sock.bind(("127.0.0.1", 0))
