"""The texts of options: which one a text, in plain signs, is or mentions."""

import itertools
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from sirt_ray.types import LETTERS

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
_DENIED_BEHIND = re.compile(
    r"(?:also |clearly |simply )?"
    r"(?:(?:is|are|was|were|would|does|do|could|can|may|seems)(?: be)?"
    r"(?: also| clearly| simply| probably)? "
    r"(?:not|unlikely|incorrect|wrong|eliminated|ruled out|excluded)"
    r"|isn't|aren't|wasn't|doesn't|don't|wouldn't|cannot|can't)\b"
)
"""In words with one blank between them."""
_THE = {"a", "an", "the"}
_ARTICLES = {*_THE, "in", "at", "be", "on"}


def exactly(text: str, choices: Sequence[str]) -> str | None:
    """The option that the whole text is: sign by sign, or else without regard to capitals, or else
    word by word apart from an article. A single letter is an option's letter and not a text."""
    options = _options(tuple(choices))
    if len(text.strip()) > options.longest or not _may_be_one(text, options.first_words):
        return None
    if ALONE.fullmatch(text):
        return None
    for form, letters in zip(_FORMS, options.letters, strict=True):
        said = form(text)
        if said in letters:
            return letters[said]
    return None


def _may_be_one(text: str, first_words: frozenset[str] | None) -> bool:
    """Whether the text begins like an option, which is far quicker to see than which one it is."""
    if first_words is None or not text.isascii():
        return True
    first = _WORD.search(text)
    if first is None or (word := first[0].lower()) in first_words:
        return True
    if word not in _THE:
        return False
    second = _WORD.search(text, first.end())
    return second is not None and second[0].lower() in first_words


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
    return " ".join(words[len(words) > 1 and words[0] in _THE :])


_FORMS = (_signs, _small_signs, _without_article)


class _Options(NamedTuple):
    longest: int
    """Characters that a text may have that is one of them, in the widest dress."""
    letters: tuple[dict[str, str | None], ...]
    """For each of the forms: what is written so, and whose it is; None where it is several's."""
    first_words: frozenset[str] | None
    """In small letters, with and without an article before them; None where an option has letters
    beyond ASCII, whose small forms are not one to one."""


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
    longest = 2 * max(map(len, choices), default=0) + 40
    plain = [choice.translate(PLAIN) for choice in choices]
    if not all(map(str.isascii, plain)):
        return _Options(longest, tuple(found), None)
    words = [
        form.split()[:1] for text in plain for form in (_all_words(text), _without_article(text))
    ]
    return _Options(longest, tuple(found), frozenset(word for first in words for word in first))


@lru_cache(maxsize=4096)
def _phrases(choices: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Each option's letter, and its words with a blank on either side."""
    phrases = ((letter, f" {_all_words(c)} ") for letter, c in zip(LETTERS, choices, strict=False))
    return tuple((letter, phrase) for letter, phrase in phrases if phrase.strip())


@lru_cache(maxsize=4096)
def _all_words(choice: str) -> str:
    return " ".join(_words(choice.translate(PLAIN)))


def _affirmed(said: str, phrase: str) -> bool:
    """Whether a phrase occurs at least once without a denial in front of it or behind it."""
    position = said.find(phrase)
    while position >= 0:
        before = [
            word for word in said[max(0, position - 60) : position].split() if word not in _ARTICLES
        ]
        denied = before and before[-1] in _DENIALS
        if not denied and not _DENIED_BEHIND.match(said, position + len(phrase)):
            return True
        position = said.find(phrase, position + 1)
    return False
