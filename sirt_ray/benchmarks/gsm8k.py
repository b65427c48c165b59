"""GSM8K: grade-school math word problems (Cobbe et al. 2021).

A row::

    {"question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many "
                 "clips in May. How many clips did Natalia sell altogether in April and May?",
     "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\\n"
               "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\\n#### 72"}
"""

from sirt_ray.benchmarks.base import Benchmark, Hub, Row, open_question, text_in
from sirt_ray.errors import DataError
from sirt_ray.types import Question

COLUMNS = ("question", "answer")


def to_question(row: Row, question_id: str, benchmark: str = "gsm8k") -> Question:
    text, answer = text_in(row, "question"), text_in(row, "answer")
    _, mark, gold = answer.rpartition("####")
    if not mark:
        raise DataError("'answer' does not end in '#### <number>'")
    return open_question(benchmark, question_id, text, gold.strip())


GSM8K = Benchmark(
    name="gsm8k",
    version=1,
    kind="number",
    source=Hub(
        "openai/gsm8k",
        "740312add88f781978c0658806c59bc2815b9866",
        num_train=7473,
        num_test=1319,
        configs=("main",),
    ),
    columns=COLUMNS,
    to_question=to_question,
)
