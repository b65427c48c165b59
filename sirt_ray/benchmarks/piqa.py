"""PIQA: physical commonsense, two solutions to a goal (Bisk et al. 2020). The validation split is
the test, as in the paper, since the hub's test split has no answers.

A row::

    {"goal": "How do I ready a guinea pig cage for it's new occupants?",
     "sol1": "Provide the guinea pig with a cage full of a few inches of bedding made of ripped "
             "paper strips, you will also need to supply it with a water bottle and a food dish.",
     "sol2": "Provide the guinea pig with a cage full of a few inches of bedding made of ripped "
             "jeans material, you will also need to supply it with a water bottle and a food dish.",
     "label": 0}
"""

from sirt_ray.benchmarks.base import (
    PAPER_NUM_TRAIN,
    Benchmark,
    Hub,
    Row,
    choice_question,
    text_in,
)
from sirt_ray.types import Question

_LABELS = ("0", "1")


def to_question(row: Row, question_id: str) -> Question:
    solutions = [text_in(row, "sol1"), text_in(row, "sol2")]
    return choice_question(
        "piqa", question_id, text_in(row, "goal"), solutions, row.get("label"), _LABELS
    )


PIQA = Benchmark(
    name="piqa",
    version=1,
    kind="choice",
    source=Hub(
        "ybisk/piqa",
        "refs/convert/parquet",
        num_train=16113,
        num_test=1838,
        files="plain_text/{split}/*.parquet",
    ),
    columns=("goal", "sol1", "sol2", "label"),
    to_question=to_question,
    test=("validation", "test"),
    balanced=True,
    default_num_train=PAPER_NUM_TRAIN,
    labels=_LABELS,
)
