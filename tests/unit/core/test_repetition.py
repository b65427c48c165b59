"""The share of repeated n-grams, by hand."""

import pytest

from sirt_ray.core.repetition import count_ngrams, repeated_share, repetition_warning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 0)),
        ("three words only", (0, 0)),
        ("a b c d e", (2, 0)),
        ("a b c d a b c d", (5, 1)),
        ("the answer is 7. " * 10, (37, 33)),
        ("so " * 20, (17, 16)),
    ],
)
def test_ngrams_are_of_words_and_repeated_within_a_text(
    text: str, expected: tuple[int, int]
) -> None:
    assert count_ngrams(text) == expected


def test_a_stage_of_such_completions_is_warned_of() -> None:
    usual, many = {"ngrams": 100, "repeated_ngrams": 25}, {"ngrams": 100, "repeated_ngrams": 26}
    assert repetition_warning("round_01/samples", usual) is None
    said = repetition_warning("round_01/samples", many)
    assert said is not None
    assert "round_01/samples: 26% of the 4-grams" in said and "lower the learning rate" in said


def test_records_of_earlier_versions_have_none() -> None:
    assert repeated_share({"completions": 3}) == 0.0
    assert repeated_share({"ngrams": 0, "repeated_ngrams": 0}) == 0.0
