"""Whether two expressions are the same by algebra, asked of math-verify in a process of its own.

Model text is hostile to a computer algebra system: `9^{9^{9^9}}` takes for ever. math-verify's own
time limits are signals, which only a main thread can have, and grading happens in the threads of
sampling actors. So there is one worker process (`algebra_worker.py`) for each process that grades.
It starts at the first question, gives up what takes longer than `LIMIT_S`, and ends with its owner,
however that ends.
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
"""Of the processor, for one comparison."""

_START_S = 120.0
"""For importing SymPy, on the busiest machine."""
_PATIENCE_S = 10 * LIMIT_S
"""After which the worker itself, which enforces the limit, is taken for lost."""
_LONGEST = 400
"""Characters of an expression; what is longer is no final answer."""


@lru_cache(maxsize=10_000)
def equivalent(reference: str, answer: str) -> bool | None:
    """Whether an answer is the same as the reference; None where that cannot be decided in time.

    Raises StageError where math-verify is not installed; never because of what the texts are.
    """
    if max(len(reference), len(answer)) > _LONGEST:
        return False
    return _worker.ask(reference, answer)


class _Worker:
    """The process, started on demand. Threads ask one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, reference: str, answer: str) -> bool | None:
        question = json.dumps([reference, answer]).encode() + b"\n"
        with self._lock:
            if self._process is None:
                self._process = _start()
            process = self._process
            try:
                _write(process, question)
                reply = _line(process, _PATIENCE_S)
            except OSError:
                reply = b""
            if not reply:
                _stop(process)
                self._process = None
                return None
        return json.loads(reply)


def _start() -> "subprocess.Popen[bytes]":
    # By its path, without the folder: in there `math` is a benchmark.
    command = [sys.executable, "-P", str(Path(__file__).with_name("algebra_worker.py"))]
    command.append(str(LIMIT_S))
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Ctrl-C is for the owner, with whom the worker ends anyway.
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


def _write(process: "subprocess.Popen[bytes]", question: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(question)
    process.stdin.flush()


def _line(process: "subprocess.Popen[bytes]", timeout_s: float) -> bytes:
    """The worker's next line; empty where it says nothing in time, or has ended."""
    assert process.stdout is not None
    waiting = select.poll()
    waiting.register(process.stdout, select.POLLIN)
    return process.stdout.readline() if waiting.poll(1000 * timeout_s) else b""


def _forget() -> None:
    global _worker
    _worker = _Worker()


_worker = _Worker()
# The pipes are the parent's to talk through, and one of its threads may hold the lock.
os.register_at_fork(after_in_child=_forget)
