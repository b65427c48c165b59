"""The verifier on the solutions of real benchmarks; expressions are compared in another process."""

from collections import Counter
from pathlib import Path

import pytest

from sirt_ray.benchmarks.registry import REGISTRY
from tests.helpers.benchmark_rows import real_rows


@pytest.mark.parametrize(("name", "column"), [("gsm8k", "answer"), ("math", "solution")])
def test_gold_solutions_are_graded_right(assets: Path, name: str, column: str) -> None:
    benchmark = REGISTRY[name]
    for _, given in real_rows(assets, benchmark):
        verdicts = Counter(
            benchmark.grade(row[column], benchmark.to_question(row, "x")).verdict for row in given
        )
        assert verdicts == {"right": len(given)}
