"""The worker process of `algebra.py`. It reads a JSON line `[reference, answer]` and writes `true`,
`false`, or `null` if it had to give up; the first line that it writes means that it is ready.

It forks a child that compares. A child that takes too long is ended by its own alarm, which also
interrupts C code; one that takes too much memory or too deep a stack ends by itself. The next child
has everything imported and initialised, so a hostile answer costs its time limit and no more.

The limit is CPU time: a verdict must not depend on the other load of the machine.
"""

import json
import logging
import os
import resource
import signal
import sys
from typing import Any

import math_verify  # pyright: ignore[reportMissingTypeStubs]

_MEMORY_BYTES = 4 << 30
_COMPARISONS = 5000
"""Comparisons of one child, whose caches grow."""
_END_OF_INPUT, _RETIRED = 0, 3
"""Exit codes of a child: there are no more requests; it has done `_COMPARISONS`."""
_library: Any = math_verify
_LATEX = [_library.LatexExtractionConfig()]
_WARM_UP = (
    ("(3, \\frac{\\pi}{2})", "(\\sqrt{9}, \\pi/2)"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    ("(-\\infty, 2) \\cup (3, 4]", "x < 2"),
)
"""SymPy and the parser load parts of themselves on first use, 0.5 s in all, which must not count
against an answer."""
_WALL_FACTOR = 5
"""A comparison may take this many times the limit in wall-clock time."""


def main() -> None:
    limit_s = float(sys.argv[1])
    logging.disable()
    for reference, answer in _WARM_UP:
        _same(reference, answer)
    _reply("ready")
    while True:
        child = os.fork()
        if not child:
            code = 1
            try:
                code = _serve(limit_s)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == _END_OF_INPUT:
            return
        if code != _RETIRED:
            _reply(None)


def _serve(limit_s: float) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for _ in range(_COMPARISONS):
        request = sys.stdin.buffer.readline()
        if not request:
            return _END_OF_INPUT
        reference, answer = json.loads(request)
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        signal.setitimer(signal.ITIMER_REAL, _WALL_FACTOR * limit_s)
        try:
            same: bool | None = _same(reference, answer)
        except MemoryError:
            same = None
        except Exception:  # An expression that math-verify cannot read is not the same.
            same = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(same)
    return _RETIRED


def _same(reference: str, answer: str) -> bool:
    """Return whether two formulas are equal. They are parsed as LaTeX and nothing else: math-verify
    would extract the numbers of other text."""
    gold, candidate = (
        _library.parse(f"${text.strip('$ ')}$", _LATEX, parsing_timeout=None)
        for text in (reference, answer)
    )
    return bool(gold and candidate and _library.verify(gold, candidate, timeout_seconds=None))


def _reply(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
