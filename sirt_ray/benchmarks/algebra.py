"""Equality of two expressions by algebra, decided by math-verify in a separate process.

Model text is hostile to a computer algebra system: `9^{9^{9^9}}` does not terminate. math-verify's
own time limits are signals, which only a main thread can receive, and grading happens in the
threads of sampling actors. So there is one worker process (`algebra_worker.py`) for each process
that grades. It starts at the first comparison, gives up on one that takes longer than `LIMIT_S`,
and ends with its owner, however that ends.
"""

import json
import os
import select
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from sirt_ray.errors import StageError

LIMIT_S = 0.5
"""CPU seconds for one comparison."""

_START_S = 120.0
"""Seconds to import SymPy, on the busiest machine."""
_TIMEOUT_S = 10 * LIMIT_S
"""Seconds after which the worker itself, which enforces the limit, counts as lost."""
_LONGEST = 400
"""Characters of the longest expression; what is longer is no final answer."""


@lru_cache(maxsize=10_000)
def equivalent(reference: str, answer: str) -> bool | None:
    """Return whether an answer equals the reference; None if that cannot be decided in time.

    Raises StageError if math-verify is not installed; never because of the texts.
    """
    if max(len(reference), len(answer)) > _LONGEST:
        return False
    return _worker.compare(reference, answer)


class _Worker:
    """The worker process, started on demand. It is used by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, reference: str, answer: str) -> bool | None:
        request = json.dumps([reference, answer]).encode() + b"\n"
        with self._lock:
            if self._process is None:
                self._process = _start()
            process = self._process
            try:
                _write(process, request)
                reply = _line(process, _TIMEOUT_S)
            except OSError:
                reply = b""
            if not reply:
                _stop(process)
                self._process = None
                return None
        return json.loads(reply)


def _start() -> "subprocess.Popen[bytes]":
    # -P keeps this folder out of sys.path, where `math` is a benchmark.
    command = [sys.executable, "-P", str(Path(__file__).with_name("algebra_worker.py"))]
    command.append(str(LIMIT_S))
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Ctrl-C is for the owner; the worker ends with it.
        start_new_session=True,
    )
    if not _line(process, _START_S):
        _stop(process)
        raise StageError(
            "the process that compares mathematical expressions does not start. math-verify may not"
            f" be installed: `{' '.join(command)}` shows why"
        )
    return process


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def _write(process: "subprocess.Popen[bytes]", request: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(request)
    process.stdin.flush()


def _line(process: "subprocess.Popen[bytes]", timeout_s: float) -> bytes:
    """Return the worker's next line; empty if none comes in time, or the worker has ended."""
    assert process.stdout is not None
    waiting = select.poll()
    waiting.register(process.stdout, select.POLLIN)
    return process.stdout.readline() if waiting.poll(1000 * timeout_s) else b""


def _start_over() -> None:
    global _worker
    _worker = _Worker()


_worker = _Worker()
# The pipes belong to the parent, and one of its threads may hold the lock.
os.register_at_fork(after_in_child=_start_over)
