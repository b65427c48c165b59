"""The verifier on mutated responses: no exception, no slow row (in full: `make bench-grading`)."""

import itertools
import time
from collections.abc import Callable, Iterator

import pytest

from sirt_ray.verifier import answers
from sirt_ray.verifier import choices as option_texts
from tests.helpers import responses


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("number", responses.mutated_numbers),
        ("choice", responses.mutated_choices),
        ("expression", responses.mutated_expressions),
    ],
)
def test_mutated_responses(kind: answers.AnswerKind, made: Callable[[int], Iterator[str]]) -> None:
    reference = {"number": "18", "choice": "D", "expression": "x+1"}[kind]
    slowest = 0.0
    for text in itertools.islice(made(0), 5000):
        began = time.process_time()
        found = answers.grade(text, reference, kind, responses.CITIES)
        slowest = max(slowest, time.process_time() - began)
        assert (found.extracted is None) == (found.verdict == "unparseable")
        assert not found.stated or found.extracted is not None
    assert slowest < 0.5


DRESSES = ("{}", "the {}", "A {}.", ' "{}" ', "AN\n{}", "THE {}!", "{} or so", "+{}", "strasse {}")
OPTIONS = [
    responses.CITIES,
    ("the bank", "a river", "+", "I, II", ""),
    ("Straße", "bank", "K", "1/2"),
]


@pytest.mark.parametrize("choices", OPTIONS)
def test_looking_at_the_first_word_first_finds_the_same(
    choices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = (*choices, "", "STRASSE", "\u212a")
    texts = [dress.format(text) for dress in DRESSES for text in said]
    texts += itertools.islice(responses.mutated_choices(0), 2000)
    quick = [option_texts.exact_option(text, choices) for text in texts]
    monkeypatch.setattr(option_texts, "_may_be_option", lambda text, first_words: True)
    assert quick == [option_texts.exact_option(text, choices) for text in texts]
    assert any(quick)
