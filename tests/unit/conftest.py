"""Unit tests that import a framework, start a process or open a port fail.

The rule is enforced while a module of this folder is collected and while one of its tests runs, so
that it also holds where component tests run in the same process.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FRAMEWORKS = frozenset({"torch", "ray", "vllm", "transformers", "deepspeed", "peft", "datasets"})
PROCESSES = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"})

_enforced = False


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """Fail the test that raises this audit event, if it is one that unit tests may not raise."""
    if not _enforced:
        return
    if event == "import" and str(args[0]).partition(".")[0] in FRAMEWORKS:
        pytest.fail(f"a unit test imports {args[0]}: move it to tests/component")
    if event in PROCESSES:
        pytest.fail(f"a unit test starts a process ({event}): move it to tests/component")
    # The address of a Unix socket is no tuple.
    if event == "socket.bind" and isinstance(args[1], tuple):
        pytest.fail(f"a unit test opens a port: {args[1]}: move it to tests/component")


# An audit hook cannot be removed: it is added once for each process, and the flag switches it.
sys.addaudithook(_refuse)


@contextmanager
def _enforcing() -> Iterator[None]:
    global _enforced
    _enforced = True
    try:
        yield
    finally:
        _enforced = False


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    with _enforcing():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _enforcing():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _enforcing():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    with _enforcing():
        return (yield)
