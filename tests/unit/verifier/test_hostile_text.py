"""The verifier on text that nobody meant as an answer: it never raises and is never slow."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirt_ray.verifier import answers, expressions

CITIES = ("Michigan", "New York", "Amsterdam", "Venice", "Bridge")

HOSTILE = [
    "\\boxed{" * 15_000,
    "\\boxed{1}" * 10_000,
    "{" * 100_000,
    "(" * 100_000,
    "answer " * 15_000,
    "answer" + " " * 100_000 + "is",
    "The answer is " * 7_000,
    "The answer is A or " * 5_000,
    "answer (" * 12_000,
    "answer to " + "x " * 50_000,
    "answer to x " * 8_000,
    "#### " * 20_000,
    "#" * 100_000,
    "1" * 100_000,
    "1," * 50_000,
    "111," * 25_000,
    "1/" * 50_000,
    "1." * 50_000,
    "-" * 100_000,
    "$" * 100_000,
    "1e" * 50_000,
    "1 1/1 " * 16_000,
    "not " * 25_000,
    "\\frac{1}" * 12_000,
    "\\frac" * 20_000,
    "\\text{" * 16_000,
    "$x$" * 33_000,
    "*" * 100_000,
    "\n" * 100_000,
    " " * 100_000,
    "A " * 50_000,
    "(A) " * 25_000,
    "(A" * 50_000,
    "**A" * 33_000,
    "option " * 14_000,
    "choose the answer " * 5_500,
    "not Venice " * 9_000,
    "Venice " * 14_000,
    "\nQ:" * 33_000,
    "\x00\ud800\u202e" * 33_000,
    "a'" * 50_000,
    "A) This - " * 10_000,
    "A (wrong) is " * 8_000,
    "rule out " + "A, " * 30_000,
    "A or B is the correct " * 5_000,
    "A is the best answer would " * 4_000,
    "The answer is A. Wait, the answer is B. " * 2_500,
    "two hundred " * 9_000,
    "1 which is (a) " * 7_000,
    "$x$ or " * 14_000,
    "\\boxed{1} or " * 8_000,
    "sqrt(" * 20_000,
    "x<" * 50_000,
    '"answer": ' * 10_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12].encode("ascii", "replace"))
def test_hostile_text_takes_bounded_time(text: str) -> None:
    began = time.process_time()
    answers.grade(text, "18", "number")
    answers.grade(text, "A", "choice", CITIES)
    answers.grade(text, "18", "expression")
    assert time.process_time() - began < 5.0


MARKS = ("The answer is ", "Answer: ", "A: ", "#### ", "\\boxed{", "}", "Question:", "not ")
PARTS = (
    "(",
    ")",
    "A",
    "B)",
    "**",
    "$",
    "Venice",
    " or ",
    "\\frac",
    "{",
    "\\text{",
    "e9",
    "million",
)
SIGNS = ("1", "0", ",", ".", "-", "/", "%", "=", "\n", " ", "\u2212", "\u0661", "\u00b2")
PIECES = st.sampled_from((*MARKS, *PARTS, *SIGNS))
TEXTS = st.one_of(st.text(max_size=300), st.lists(PIECES, max_size=40).map("".join))


@settings(max_examples=400, deadline=None)
@given(text=TEXTS, reference=TEXTS)
def test_never_raises(text: str, reference: str) -> None:
    for kind in ("number", "choice", "expression"):
        found = answers.grade(text, reference, kind, CITIES)
        assert (found.extracted is None) == (found.verdict == "unparseable")
    assert expressions.normalise(text) is not None


@settings(max_examples=200, deadline=None)
@given(value=st.integers(-(10**12), 10**12), cents=st.integers(0, 99))
def test_number_survives_its_dress(value: int, cents: int) -> None:
    plain = f"{value}.{cents:02d}"
    for text in (f"The answer is {plain}.", f"#### {value:,}.{cents:02d}", f"It costs ${plain}"):
        found = answers.grade(f"First 12, then 7.\n{text}", plain, "number")
        assert found.verdict == "right"


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_extracted_answer_reads_as_itself(text: str) -> None:
    """The teacher's extracted answer becomes the reference that the student is judged by."""
    found = answers.extract(text, "number")
    if found is not None:
        said = answers.grade(f"The answer is {found.answer}.", found.answer, "number")
        assert said.verdict == "right"
