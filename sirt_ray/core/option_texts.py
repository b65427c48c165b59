"""The texts of options: which one a text, in plain signs, is or mentions."""

import itertools
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from sirt_ray.core.prompts import LETTERS

ALONE = re.compile(r"[\s*_\"'`(\[$]{0,10}(?P<letter>[A-Za-z])[\s*_\"'`)\].$:!?]{0,10}")
"""A single letter: an option's name and not its text."""

PLAIN = str.maketrans(
    {
        **{
            "\u2018": "'",
            "\u2019": "'",
            "\u201c": '"',
            "\u201d": '"',
            "\u2013": "-",
            "\u2014": "-",
        },
        **{"\uff08": "(", "\uff09": ")", "\uff1a": ":", "\u3002": ". "},
    }
)
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_DENIALS = {"not", "isn't", "never", "nor", "neither", "cannot", "can't", "aren't", "wasn't"}
_ARTICLES = {"a", "an", "the", "in", "at", "be", "on"}


def exactly(text: str, choices: Sequence[str]) -> str | None:
    """The option that the whole text is: sign by sign, or else without regard to capitals, or else
    word by word apart from an article. A single letter is an option's letter and not a text."""
    options = _options(tuple(choices))
    if len(text.strip()) > options.longest or ALONE.fullmatch(text):
        return None
    for form, letters in zip(_FORMS, options.letters, strict=True):
        said = form(text)
        if said in letters:
            return letters[said]
    return None


def mentioned(text: str, choices: Sequence[str]) -> str | None:
    """The only option whose text occurs in the text, whole words only. An option within a longer
    one that occurs ("bank" in "river bank") and one that is denied do not count."""
    said = f" {' '.join(_words(text))} "
    found = {
        letter: phrase
        for letter, phrase in _phrases(tuple(choices))
        if phrase in said and _affirmed(said, phrase)
    }
    longest = [
        letter
        for letter, phrase in found.items()
        if not any(phrase in other and phrase != other for other in found.values())
    ]
    return longest[0] if len(longest) == 1 else None


def behind(text: str, choice: str) -> str:
    """What follows the option's own text, if the text begins with it."""
    option = _all_words(choice).split()
    found = list(itertools.islice(_WORD.finditer(text), len(option)))
    return text[found[-1].end() :] if option and [m[0].lower() for m in found] == option else text


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _signs(text: str) -> str:
    return " ".join(text.split()).strip(" .!\"'") or text.strip()


def _small_signs(text: str) -> str:
    return _signs(text.casefold())


def _without_article(text: str) -> str:
    words = _words(text)
    return " ".join(words[len(words) > 1 and words[0] in ("a", "an", "the") :])


_FORMS = (_signs, _small_signs, _without_article)


class _Options(NamedTuple):
    longest: int
    """Characters that a text may have that is one of them, in the widest dress."""
    letters: tuple[dict[str, str | None], ...]
    """For each of the forms: what is written so, and whose it is; None where it is several's."""


@lru_cache(maxsize=4096)
def _options(choices: tuple[str, ...]) -> _Options:
    found: list[dict[str, str | None]] = []
    for form in _FORMS:
        letters: dict[str, str | None] = {}
        for letter, choice in zip(LETTERS, choices, strict=False):
            said = form(choice.translate(PLAIN))
            letters[said] = None if said in letters else letter
        letters.pop("", None)
        found.append(letters)
    return _Options(2 * max(map(len, choices), default=0) + 40, tuple(found))


@lru_cache(maxsize=4096)
def _phrases(choices: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Each option's letter, and its words with a blank on either side."""
    phrases = ((letter, f" {_all_words(c)} ") for letter, c in zip(LETTERS, choices, strict=False))
    return tuple((letter, phrase) for letter, phrase in phrases if phrase.strip())


@lru_cache(maxsize=4096)
def _all_words(choice: str) -> str:
    return " ".join(_words(choice.translate(PLAIN)))


def _affirmed(said: str, phrase: str) -> bool:
    """Whether a phrase occurs at least once without a denial in front of it."""
    position = said.find(phrase)
    while position >= 0:
        before = [
            word for word in said[max(0, position - 60) : position].split() if word not in _ARTICLES
        ]
        if not before or before[-1] not in _DENIALS:
            return True
        position = said.find(phrase, position + 1)
    return False
