"""MultiArith: arithmetic word problems of several steps (Roy and Roth 2015).

A row::

    {"question": "For Halloween Debby and her sister combined the candy they received. Debby had "
                 "32 pieces of candy while her sister had 42. If they ate 35 pieces the first "
                 "night, how many pieces do they have left?",
     "final_ans": "39"}
"""

from sirt_ray.benchmarks.base import Benchmark, Hub, Row, open_question, text_in
from sirt_ray.errors import DataError
from sirt_ray.types import Question


def to_question(row: Row, question_id: str) -> Question:
    text = text_in(row, "question")
    if "final_ans" not in row:
        raise DataError("column 'final_ans' is missing")
    return open_question("multiarith", question_id, text, row["final_ans"])


MULTIARITH = Benchmark(
    name="multiarith",
    version=1,
    kind="number",
    source=Hub(
        "ChilleD/MultiArith",
        "144d44c3fb87c0b9097ac9593c789e716a282e3e",
        num_train=420,
        num_test=180,
    ),
    columns=("question", "final_ans"),
    to_question=to_question,
)
