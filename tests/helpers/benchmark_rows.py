"""A row of each benchmark, in the columns of its data set, made for the tests; and the real
rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sirt_ray.benchmarks import files
from sirt_ray.benchmarks.base import Benchmark, Part
from sirt_ray.errors import DataError

CSQA = {
    "id": "x1",
    "question": "Where are canals?",
    "choices": {"label": ["A", "B", "C"], "text": ["Oslo", "Venice", "Rome"]},
    "answerKey": "B",
}
OBQA = {
    "id": "t-0",
    "question_stem": "The sun is responsible for",
    "choices": {"text": ["puppies", "plants"], "label": ["A", "B"]},
    "answerKey": "B",
}
PIQA = {"goal": "Dry a cup", "sol1": "Use a towel.", "sol2": "Use water.", "label": 0}
SIQA = {
    "context": "Tracy stayed.",
    "question": "Why?",
    "answerA": "to rest",
    "answerB": "to run",
    "answerC": "to sing",
    "label": "3",
}
GSM = {"question": "How many?", "answer": "2 * 600 = <<2*600=1200>>1,200\n#### 1,200"}
ARITH = {"question": "How many?", "final_ans": "39"}
MATH = {"problem": "Solve.", "solution": "Not \\boxed{1} but $\\boxed{\\frac{1}{2}}$."}
MMLU = {"question": "Which?", "subject": "law", "choices": ["w", "x", "y", "z"], "answer": 2}
ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": GSM,
    "multiarith": ARITH,
    "commonsense_qa": CSQA,
    "openbookqa": OBQA,
    "piqa": PIQA,
    "social_i_qa": SIQA,
    "math": MATH,
    "mmlu": MMLU,
    "word_problems": GSM,
    "word_problems_ood": GSM,
    "letter_choices": CSQA,
    "letter_choices_ood": CSQA,
}


def real_rows(assets: Path, benchmark: Benchmark) -> Iterator[tuple[Part, list[dict[str, Any]]]]:
    """Yield the rows of each part of which there is a file."""
    for part in ("train", "test"):
        try:
            paths = files.find(assets / "data", benchmark, part)
        except DataError:
            continue
        yield part, [row for path in paths for row in pq.read_table(path).to_pylist()]
