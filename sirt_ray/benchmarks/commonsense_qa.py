"""CommonsenseQA: everyday knowledge, five options (Talmor et al. 2019). The validation split is the
test, as in the paper, since the hub's test split has no answers.

A row::

    {"id": "1afa02df02c908a558b4036e80242fac",
     "question": "A revolving door is convenient for two direction travel, but it also serves as a "
                 "security measure at a what?",
     "question_concept": "revolving door",
     "choices": {"label": ["A", "B", "C", "D", "E"],
                 "text": ["bank", "library", "department store", "mall", "new york"]},
     "answerKey": "A"}
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

COLUMNS = ("question", "choices", "answerKey")


def to_question(row: Row, question_id: str, benchmark: str = "commonsense_qa") -> Question:
    text = text_in(row, "question")
    labels, texts = labelled_choices(row)
    return choice_question(benchmark, question_id, text, texts, row.get("answerKey"), labels)


COMMONSENSE_QA = Benchmark(
    name="commonsense_qa",
    version=1,
    kind="choice",
    source=Hub(
        "tau/commonsense_qa",
        "94630fe30dad47192a8546eb75f094926d47e155",
        num_train=9741,
        num_test=1221,
    ),
    columns=COLUMNS,
    to_question=to_question,
    test=("validation", "test"),
    balanced=True,
    default_num_train=PAPER_NUM_TRAIN,
)
