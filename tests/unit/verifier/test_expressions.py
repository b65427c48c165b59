"""The verifier on MATH's answers: which expression a text ends in, by where each rule comes from,
and which expressions are the same without algebra."""

import pytest

from sirt_ray.verifier import answers
from sirt_ray.verifier.statements import FinalAnswer

EXPRESSIONS: dict[str, list[tuple[str, str, bool]]] = {
    "MATH (Hendrycks et al. 2021): the last box": [
        ("First $\\boxed{1}$, then $\\boxed{\\frac{3}{4}}$.", "\\frac{3}{4}", True),
        ("The final answer is: $\\boxed{3\\frac12}$", "3\\frac12", True),
    ],
    "Lewkowycz et al. 2022: Final Answer: The final answer is $x$. I hope it is correct.": [
        ("Final Answer: The final answer is $x+1$. I hope it is correct.", "x+1", True),
    ],
    "several boxes or formulas in a row are one answer": [
        ("$\\boxed{3}$, $\\boxed{5}$ and $\\boxed{7}$", "3, 5, 7", True),
        ("$x = \\boxed{1}$ or $x = \\boxed{-2}$", "1, -2", True),
        ("$\\boxed{1}$\n\nSo it is $\\boxed{1}$", "1", True),
        ("The answer is $1$ or $-2$. That is $2$ values.", "1, -2", True),
        ("So $x = 1$ or $x = -2$.", "x = 1, -2", False),
        ("So $x = 1$ and $y = 2$.", "y = 2", False),
    ],
    "what a last sentence says without a formula": [
        ("The student is **Evelyn**.", "Evelyn", False),
        ("Thus $f$ is **even**.", "even", False),
        ("**Therefore**, $x$ is $12$.", "12", False),
        ("The triple is (6, 31, -1).", "(6, 31, -1)", False),
        ("The period is \u03c0.", "\u03c0", False),
        ("There are 12 of them in 3 rows", "12", False),
    ],
    "a last sentence without a formula counts more than a formula before it": [
        ("We get $6 x = 864$. So the surface is 864 square inches.", "864", False),
        ("We have $t = 2$. So the point is (15, -29) on the curve.", "(15, -29)", False),
        ("The domain of $f$ is known. So it is (0, 9) U (9, 36).", "(0, 9) U (9, 36)", False),
        ("As $a < b$, it is far. The student is Carla.", "Carla", False),
        ("As $f(-x) = f(x)$, it mirrors. Thus the function is even.", "even", False),
        ("So $x = 5$. This is the only way.", "x = 5", False),
        ("He pays $5 and then, of the rest, $13 more.", "13", False),
    ],
    "chat models": [
        ("The answer is 12 square units.", "12", True),
        ("The answer is **12**.", "12", True),
        ("The final answer is $\\$36$.", "\\$36", True),
        ("Thus $x = 5$", "x = 5", False),
        ("So there are 12 ways.", "12", False),
    ],
}


JUDGED = [
    ("so $\\boxed{\\frac{1}{2}}$.", "\\dfrac12", "right"),
    ("\\boxed{\\dfrac{1}{2}}", "1/2", "right"),
    ("\\boxed{0.5}", "\\frac{1}{2}", "right"),
    ("\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}", "(3,\\frac{\\pi}{2})", "right"),
    ("\\boxed{(3, 2)}", "(2, 3)", "wrong"),
    ("\\boxed{1,-2}", "-2, 1", "right"),
    ("\\boxed{-2 \\text{ and } 1}", "1,-2", "right"),
    ("\\boxed{x = 5}", "5", "right"),
    ("\\boxed{10,\\!000}", "10000", "right"),
    ("\\boxed{90^\\circ}", "90", "right"),
    ("\\boxed{12 \\text{ cm}}", "12", "right"),
    ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}", "right"),
    ("\\boxed{\\$36}", "36", "right"),
    ("\\boxed{50\\%}", "50", "right"),
    ("\\boxed{\\sqrt2}", "\\sqrt{2}", "right"),
    ("\\boxed{x^{2}+{1}} is wrong, \\boxed{y}", "y", "right"),
    ("The answer is $\\frac{1}{2}$.", "\\frac12", "right"),
    ("The answer is 7.", "7", "right"),
    ("Thus $a = 3$ and so $b=7$", "7", "right"),
    ("all in all 7", "7", "right"),
    ("\\boxed{[0, 1)}", "(0, 1)", "wrong"),
    ("\\boxed{(-2, 1)}", "-2, 1", "wrong"),
    ("\\boxed{(1, 2), (3, 4)}", "(3,4), (1,2)", "right"),
    ("\\boxed{\\{2, 1\\}}", "\\{1, 2\\}", "right"),
    ("\\boxed{x \\in [-2, 7]}", "[-2,7]", "right"),
    ("\\boxed{10 \\text{ cm}^2}", "10", "right"),
    ("\\boxed{\\text{(C)}}", "C", "right"),
    (
        "\\boxed{\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}",
        "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
        "right",
    ),
    ("\\boxed{3 < x \\leq 4}", "(3,4]", "right"),
    ("\\boxed{4 \\ge x > 3}", "(3,4]", "right"),
    ("\\boxed{3 < x < 4}", "(3,4]", "wrong"),
    ("\\boxed{x > 2}", "(2,\\infty)", "right"),
    ("\\boxed{2 < x}", "(2,\\infty)", "right"),
    ("\\boxed{x > 2}", "(-\\infty,2)", "wrong"),
    ("\\boxed{-2 \\le x \\le 7}", "x \\in [-2,7]", "right"),
    ("\\boxed{x > 3 \\text{ or } x < 2}", "(-\\infty, 2) \\cup (3, \\infty)", "right"),
    ("\\boxed{x < y}", "(-\\infty, 2)", "wrong"),
    ("The answer is 1 4/5.", "\\frac{9}{5}", "right"),
    ("The answer is 1 4/5.", "\\frac{14}{5}", "wrong"),
    ("The primes are 3, 5, and 7.", "3, 5, 7", "right"),
    ("The answer is 3\u221a13.", "3\\sqrt{13}", "right"),
    ("The answer is 2*sqrt(5).", "2*\\sqrt{5}", "right"),
    ("\\boxed{2 \\pmod{5}}", "2", "right"),
    ("\\boxed{\\text{an ellipse}}", "\\text{ellipse}", "right"),
    ("She faces **East**.", "\\text{east}", "right"),
    ("\\boxed{P(-1, 6)}", "(-1,6)", "right"),
    ("\\boxed{3 < \\lambda \\le 4}", "(3,4]", "right"),
    ("\\boxed{3 < \\pi \\le 4}", "(3,4]", "wrong"),
    ("The answer is (C) Plane.", "\\text{(C)}", "right"),
    ("The answer is (C) Plane.", "\\text{(E)}", "wrong"),
    ("\\boxed{4210_{\\text{five}}}", "4210_5", "right"),
    ("\\boxed{4210_{\\text{six}}}", "4210_5", "wrong"),
    ("The domain is (0, 9) U (9, 36).", "(0,9) \\cup (9,36)", "right"),
    ("**42**", "42", "right"),
    ("\\boxed{x+1}", "x+2", "wrong"),
    ("\\boxed{}", "1", "unparseable"),
    ("\\boxed{unclosed", "1", "unparseable"),
    ("no idea", "1", "unparseable"),
]


@pytest.mark.parametrize(
    ("text", "answer", "stated"),
    [
        pytest.param(*case, id=f"{source}: {case[0]}")
        for source, cases in EXPRESSIONS.items()
        for case in cases
    ],
)
def test_expression_is_read(text: str, answer: str, stated: bool) -> None:
    assert answers.extract(text, "expression") == FinalAnswer(answer, stated)


@pytest.mark.parametrize(("text", "reference", "verdict"), JUDGED)
def test_expression_is_judged(text: str, reference: str, verdict: str) -> None:
    assert answers.grade(text, reference, "expression").verdict == verdict
