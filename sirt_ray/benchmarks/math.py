"""MATH: competition mathematics, the answer is a LaTeX expression (Hendrycks et al. 2021).
Local files may have the subset of 500 test questions that is known as MATH-500.

A row::

    {"problem": "Convert the point $(0,3)$ in rectangular coordinates to polar coordinates.  Enter "
                "your answer in the form $(r,\\\\theta),$ where $r > 0$ and ...",
     "level": "2", "type": "Precalculus",
     "solution": "We have that $r = \\\\sqrt{0^2 + 3^2} = 3.$ ... Therefore, the polar coordinates "
                 "are $\\\\boxed{\\\\left( 3, \\\\frac{\\\\pi}{2} \\\\right)}.$"}
"""

from sirt_ray.benchmarks import algebra
from sirt_ray.benchmarks.base import Benchmark, Hub, Row, text_in
from sirt_ray.errors import DataError
from sirt_ray.types import Question
from sirt_ray.verifier import statements

_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def to_question(row: Row, question_id: str) -> Question:
    text, solution = text_in(row, "problem"), text_in(row, "solution")
    boxes = [s.text.strip() for s in statements.find(solution) if s.mark == "boxed"]
    if not boxes or not boxes[-1]:
        raise DataError("'solution' has no answer in \\boxed{...}")
    return Question(question_id, "math", text, (), boxes[-1])


MATH = Benchmark(
    name="math",
    version=2,
    kind="expression",
    source=Hub(
        "EleutherAI/hendrycks_math",
        "21a5633873b6a120296cce3e2df9d5550074f4a3",
        num_train=7500,
        num_test=5000,
        configs=_SUBJECTS,
    ),
    columns=("problem", "solution"),
    to_question=to_question,
    test=("test", "test500"),
    equivalent=algebra.equivalent,
)
