"""The process behind `algebra.py`. It reads a JSON line `[reference, answer]` and writes `true`,
`false`, or `null` where it had to give up; the first line that it writes says that it is ready.

It forks a child that compares. A child that takes too long is ended by its own alarm, which also
interrupts C code; one that takes too much memory or too deep a stack ends by itself. The next child
has everything imported and used already, so a hostile answer costs its time limit and no more.

The limit is processor time: a verdict must not depend on what else the machine does.
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
"""Of one child, whose caches grow."""
_DONE, _AT_REST = 0, 3
"""Exit codes of a child: nothing more will be asked; it made way for a fresh one."""
_library: Any = math_verify
_LATEX = [_library.LatexExtractionConfig()]
_FIRST = (
    ("(3, \\frac{\\pi}{2})", "(\\sqrt{9}, \\pi/2)"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    ("(-\\infty, 2) \\cup (3, 4]", "x < 2"),
)
"""What SymPy and the parser load when they first meet it, 0.5 s in all, no answer shall pay for."""
_PATIENCE = 5
"""Times the limit that a comparison may take by the clock."""


def main() -> None:
    limit_s = float(sys.argv[1])
    logging.disable()
    for reference, answer in _FIRST:
        _same(reference, answer)
    _say("ready")
    while True:
        child = os.fork()
        if not child:
            code = 1
            try:
                code = _serve(limit_s)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == _DONE:
            return
        if code != _AT_REST:
            _say(None)


def _serve(limit_s: float) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for _ in range(_COMPARISONS):
        question = sys.stdin.buffer.readline()
        if not question:
            return _DONE
        reference, answer = json.loads(question)
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE * limit_s)
        try:
            same: bool | None = _same(reference, answer)
        except MemoryError:
            same = None
        except Exception:  # What math-verify cannot read is not the same, whatever it says of it.
            same = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _say(same)
    return _AT_REST


def _same(reference: str, answer: str) -> bool:
    """Parsed as formulas and nothing else: out of other text math-verify would pick the numbers."""
    gold, given = (
        _library.parse(f"${text.strip('$ ')}$", _LATEX, parsing_timeout=None)
        for text in (reference, answer)
    )
    return bool(gold and given and _library.verify(gold, given, timeout_seconds=None))


def _say(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
