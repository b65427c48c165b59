"""How many test questions have been seen in training, as far as their words tell."""

import re
from collections.abc import Iterable, Mapping, Sequence

from sirt_ray.benchmarks.selection import text_key
from sirt_ray.types import Question

NGRAM = 13
"""Words in a row that two questions do not share by chance: the longest that the GPT-3 paper takes
(Brown et al. 2020, appendix C)."""

_WORD = re.compile(r"\w+")


def ngrams(text: str) -> set[tuple[str, ...]]:
    """All runs of `NGRAM` words of a text, without regard to case and punctuation. A shorter text
    is one run as a whole; a text without words has none."""
    words = tuple(_WORD.findall(text.casefold()))
    if len(words) < NGRAM:
        return {words} if words else set()
    return {words[first : first + NGRAM] for first in range(len(words) - NGRAM + 1)}


def contamination(
    train: Iterable[Question], tests: Mapping[str, Sequence[Question]]
) -> dict[str, dict[str, int]]:
    """For the test questions of each benchmark: how many have the `same_text` as a training
    question, and how many are `overlapping`, by sharing `NGRAM` words in a row with one.

    A question of fewer words overlaps only with a question of the very same words. The GPT-3 paper
    shortens the run to as few as 8 words where questions are short; we do not, since word problems
    share that many by their wording alone. Options and answers are not looked at.
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
