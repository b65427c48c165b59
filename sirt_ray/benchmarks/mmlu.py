"""MMLU: knowledge of 57 subjects, four options (Hendrycks et al. 2021). It is only evaluated.
Local files may have the 3018 test questions of the STEM subjects.

A row::

    {"question": "Based on the characteristic population curves that result from plotting "
                 "population growth of a species, the most effective means of controlling the "
                 "mosquito population is to",
     "subject": "college_biology",
     "choices": ["maintain the population at a point corresponding to the midpoint of its logistic "
                 "curve", "opt for zero population control once the K value of the curve has been "
                 "reached", "reduce the carrying capacity cif the environment to lower the K value",
                 "increase the mortality rate"],
     "answer": 2}
"""

from sirt_ray.benchmarks.base import Benchmark, Hub, Row, choice_question, strings, text_in
from sirt_ray.types import Question

_LABELS = tuple("0123456789")


def to_question(row: Row, question_id: str) -> Question:
    text, choices = text_in(row, "question"), strings(row.get("choices"))
    return choice_question("mmlu", question_id, text, choices, row.get("answer"), _LABELS)


MMLU = Benchmark(
    name="mmlu",
    version=1,
    kind="choice",
    source=Hub(
        "cais/mmlu",
        "c30699e8356da336a370243923dbaf21066bb9fe",
        num_train=0,
        num_test=14042,
        configs=("all",),
    ),
    columns=("question", "choices", "answer"),
    to_question=to_question,
    labels=_LABELS,
    train=(),
    test=("test", "test_stem"),
)
