"""OpenBookQA: elementary science, four options (Mihaylov et al. 2018). The validation split is the
test, as in the paper. Where local files have only a test split (500 other questions, with answers),
that is used.

A row::

    {"id": "train-0",
     "question_stem": "The sun is responsible for",
     "choices": {"text": ["puppies learning new tricks", "children growing up and getting old",
                          "flowers wilting in a vase", "plants sprouting, blooming and wilting"],
                 "label": ["A", "B", "C", "D"]},
     "answerKey": "D"}
"""

from sirt_ray.benchmarks.base import (
    PAPER_NUM_TRAIN,
    Benchmark,
    Hub,
    Row,
    choice_question,
    labelled_choices,
    text_in,
)
from sirt_ray.types import Question


def to_question(row: Row, question_id: str) -> Question:
    text = text_in(row, "question_stem")
    labels, texts = labelled_choices(row)
    return choice_question("openbookqa", question_id, text, texts, row.get("answerKey"), labels)


OPENBOOKQA = Benchmark(
    name="openbookqa",
    version=1,
    kind="choice",
    source=Hub(
        "allenai/openbookqa",
        "388097ea7776314e93a529163e0fea805b8a6454",
        num_train=4957,
        num_test=500,
        configs=("main",),
    ),
    columns=("question_stem", "choices", "answerKey"),
    to_question=to_question,
    test=("validation", "test"),
    balanced=True,
    default_num_train=PAPER_NUM_TRAIN,
)
