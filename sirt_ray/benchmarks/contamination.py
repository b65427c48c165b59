"""Contamination: how many test questions occur in training, judged by their words."""

import re
from collections.abc import Iterable, Mapping, Sequence

from sirt_ray.benchmarks.selection import text_key
from sirt_ray.types import Question

NGRAM = 13
"""Consecutive words that two questions do not share by chance: the largest n-gram that the GPT-3
paper uses (Brown et al. 2020, appendix C)."""

_WORD = re.compile(r"\w+")


def ngrams(text: str) -> set[tuple[str, ...]]:
    """Return all n-grams of `NGRAM` words of a text, ignoring case and punctuation. A shorter text
    is one n-gram; a text without words has none."""
    words = tuple(_WORD.findall(text.casefold()))
    if len(words) < NGRAM:
        return {words} if words else set()
    return {words[first : first + NGRAM] for first in range(len(words) - NGRAM + 1)}


def contamination(
    train: Iterable[Question], tests: Mapping[str, Sequence[Question]]
) -> dict[str, dict[str, int]]:
    """Return, for the test questions of each benchmark, how many have the `same_text` as a training
    question, and how many are `overlapping`: they share `NGRAM` consecutive words with one.

    A question of fewer words overlaps only with a question of exactly the same words. The GPT-3
    paper shortens the n-gram to as few as 8 words where questions are short; this function does
    not, since word problems share that many by their wording alone. Options and answers are
    ignored.
    """
    texts: set[str] = set()
    seen: set[tuple[str, ...]] = set()
    for question in train:
        texts.add(text_key(question))
        seen |= ngrams(question.text)
    return {
        name: {
            "ngram": NGRAM,
            "test_questions": len(test),
            "same_text": sum(text_key(question) in texts for question in test),
            "overlapping": sum(not seen.isdisjoint(ngrams(question.text)) for question in test),
        }
        for name, test in tests.items()
    }
