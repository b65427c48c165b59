"""The verifier on a million mutated responses: how fast it is, and whether anything stops it.

    python -m tests.bench.grading [--rows 1000000] [--expressions 2000]

Half of the rows are numbers, half are choices; both are graded in one process on one core. Rows
with expressions are fewer, because most of them are asked of the algebra's process as well. The
last line is JSON:

    rows_per_second_numbers, rows_per_second_choices    of one core, without making the rows
    slowest_row_seconds                                 of all rows
    exceptions                                          raised; the first few are printed
"""

import argparse
import itertools
import json
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator

from sirt_ray.benchmarks import algebra
from sirt_ray.benchmarks.registry import grade
from sirt_ray.types import Question
from tests.helpers import responses

_SHOWN = 3
_CHUNK = 10_000


class Measured:
    """Rows of one kind, graded one after the other."""

    def __init__(self, name: str, question: Question, texts: Iterator[str]) -> None:
        self.name, self._question, self._texts = name, question, texts
        self.seconds = self.slowest = 0.0
        self.counts: Counter[str] = Counter()

    def run(self, rows: int) -> None:
        for done in range(0, rows, _CHUNK):
            for text in list(itertools.islice(self._texts, min(_CHUNK, rows - done))):
                self._grade(text)
        counts = ", ".join(f"{n:,} {what}" for what, n in sorted(self.counts.items()))
        print(
            f"{self.name}: {rows:,} rows in {self.seconds:.1f} s, the slowest"
            f" {1000 * self.slowest:.1f} ms; {counts}; memory {_mebibytes():.0f} MiB at its peak",
            flush=True,
        )

    def _grade(self, text: str) -> None:
        began = time.perf_counter()
        try:
            found = grade(text, self._question)
        except Exception:
            self.counts["exceptions"] += 1
            if self.counts["exceptions"] <= _SHOWN:
                print(ascii(text), traceback.format_exc(), sep="\n")
            return
        took = time.perf_counter() - began
        self.seconds += took
        self.slowest = max(self.slowest, took)
        self.counts[found.verdict] += 1
        self.counts["undecided"] += found.undecided


def _mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--expressions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    seed, half = arguments.seed, arguments.rows // 2
    number = Question("", "gsm8k", "", (), "18")
    choice = Question("", "commonsense_qa", "", responses.CITIES, "D")
    formula = Question("", "math", "", (), "x^2 + 2x + 1")
    numbers = Measured("numbers", number, responses.mutated_numbers(seed))
    choices = Measured("choices", choice, responses.mutated_choices(seed))
    expressions = Measured("expressions", formula, responses.mutated_expressions(seed))
    for measured in (numbers, choices):
        measured.run(half // 10)
        measured.run(half - half // 10)
    algebra.equivalent("x+1", "1+x")
    expressions.run(arguments.expressions)
    every = (numbers, choices, expressions)
    exceptions = sum(measured.counts["exceptions"] for measured in every)
    rates = {
        f"rows_per_second_{measured.name}": round(half / measured.seconds)
        for measured in (numbers, choices)
    }
    slowest = max(measured.slowest for measured in every)
    print(json.dumps({**rates, "slowest_row_seconds": round(slowest, 4), "exceptions": exceptions}))
    return 1 if exceptions else 0


if __name__ == "__main__":
    sys.exit(main())
