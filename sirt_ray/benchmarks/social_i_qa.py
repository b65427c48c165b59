"""SocialIQA: what people feel and do, three options (Sap et al. 2019). The validation split is the
test, as in the paper, since there is no other.

A row::

    {"context": "Tracy didn't go home that evening and resisted Riley's attacks.",
     "question": "What does Tracy need to do before this?",
     "answerA": "make a new plan", "answerB": "Go home and see Riley",
     "answerC": "Find somewhere to go",
     "label": "3"}
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

_LABELS = ("1", "2", "3")


def to_question(row: Row, question_id: str) -> Question:
    text = f"{text_in(row, 'context')} {text_in(row, 'question')}"
    choices = [text_in(row, f"answer{letter}") for letter in "ABC"]
    return choice_question("social_i_qa", question_id, text, choices, row.get("label"), _LABELS)


SOCIAL_I_QA = Benchmark(
    name="social_i_qa",
    version=1,
    kind="choice",
    source=Hub(
        "allenai/social_i_qa",
        "refs/convert/parquet",
        num_train=33410,
        num_test=1954,
        files="default/{split}/*.parquet",
    ),
    columns=("context", "question", "answerA", "answerB", "answerC", "label"),
    to_question=to_question,
    test=("validation", "test"),
    balanced=True,
    default_num_train=PAPER_NUM_TRAIN,
    labels=_LABELS,
)
