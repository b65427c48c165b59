"""What counts as an answer that shows how it was found."""

import time

import pytest

from sirt_ray.report.run import has_chain_of_thought


@pytest.mark.parametrize(
    "text",
    [
        "16 - 7 = 9, so the answer is 9.",
        "$16 \u2212 $7 = $9",
        "(3 + 4) * 2 = 14",
        "Venice is built on canals. The answer is D.",
        "Venice is built on canals\nThe answer is D",
    ],
)
def test_reasoning(text: str) -> None:
    assert has_chain_of_thought(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "18",
        "The answer is 18.",
        "The answer is 18.50 dollars.",
        "D) Venice. The answer is D.",
        "Yes! The answer is D.",
        "x = 9 and so the answer is 9",
        "The answer is -18.",
    ],
)
def test_a_bare_answer(text: str) -> None:
    assert not has_chain_of_thought(text)


def test_a_hostile_text_takes_no_time() -> None:
    began = time.process_time()
    for text in ("1+1" * 50_000, "1 + " * 50_000, "." * 100_000, "(" * 100_000):
        has_chain_of_thought(text)
    assert time.process_time() - began < 2
