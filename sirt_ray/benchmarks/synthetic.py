"""The synthetic tasks of the quickstart. `quickstart/tasks.py` generates their rows: word problems
in GSM8K's columns, letter choices in CommonsenseQA's. The `_ood` variants are the same kind of task
in different words and with longer chains, to measure out-domain accuracy.

Rows of the two kinds::

    {"question": "Tom has 4 bags with 8 coins in each bag. Tom loses 9. How many coins does Tom "
                 "have now?",
     "answer": "Tom has 4*8=32 coins. Then 32-9=23.\\n#### 23"}

    {"id": "letter_choices-train-0-7", "question_concept": "height",
     "question": "Tom is taller than Mia. Mia is taller than Bob. Who is the tallest?",
     "choices": {"label": ["A", "B", "C"], "text": ["Mia", "Tom", "Bob"]}, "answerKey": "B"}
"""

from functools import partial

from sirt_ray.benchmarks import commonsense_qa, gsm8k
from sirt_ray.benchmarks.base import Benchmark, Generated

_SOURCE = Generated(num_train=2000, num_test=500)


def _word_problems(name: str) -> Benchmark:
    return Benchmark(
        name=name,
        version=1,
        kind="number",
        source=_SOURCE,
        columns=gsm8k.COLUMNS,
        to_question=partial(gsm8k.to_question, benchmark=name),
    )


def _letter_choices(name: str) -> Benchmark:
    return Benchmark(
        name=name,
        version=1,
        kind="choice",
        source=_SOURCE,
        columns=commonsense_qa.COLUMNS,
        to_question=partial(commonsense_qa.to_question, benchmark=name),
    )


WORD_PROBLEMS = _word_problems("word_problems")
WORD_PROBLEMS_OOD = _word_problems("word_problems_ood")
LETTER_CHOICES = _letter_choices("letter_choices")
LETTER_CHOICES_OOD = _letter_choices("letter_choices_ood")
