"""Which option a text chooses.

Read in this order; two different letters at the same place mean that there is no answer:

1. the letters that the text names as its answer ("The answer is (B)", "**B** is correct",
   "The correct answer is: D) Venice");
2. an option's text named as the answer ("The answer is Venice");
3. the only letter in an option's dress ("B", "(B)", "**B**", "D) Venice"), which a list of all
   options has not;
4. the only option whose text the last sentence, or else the whole text, mentions.
"""

import itertools
import re
from collections.abc import Sequence

from sirt_ray.core.prompts import LETTERS
from sirt_ray.core.statements import (
    MOST_MARKS,
    WINDOW,
    Statement,
    find,
    first_sentence,
    is_last,
    last_sentence,
    readings,
)

_FILLER = re.compile(
    r"[\s:*_\"'`$({\[\\]{0,20}"
    r"(?:(?:the\s)?(?:option|choice|letter|answer|textbf|text|mathrm|mathbf|boxed"
    r"|clearly|probably|(?:most\s)?likely|definitely|therefore|thus|simply|obviously)\b"
    r"[\s:({\[*_\"'$]{0,10}){0,3}",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"(?P<letter>[A-Za-z])(?![A-Za-z0-9-]|'[A-Za-z])(?P<dress>\s?[)\]}.:*_,;\"'$]{0,8})"
)
_SECOND = re.compile(
    r"\s?(?:or|and|&|/)\s?(?:option\s|choice\s)?[(\[*]{0,3}([A-Z])(?![A-Za-z'])"
    r"|\s?[(\[*]{0,3}([A-Z])(?:[)\].,;]|\s?$|\s(?:or|and)\b)"
)
_OR_ELSE = re.compile(r"\bor\s(?:option\s)?[(\[*]{0,3}([A-Z])[)\]*.:]")
_CONNECTIVE = re.compile(
    r"\s{0,3}(?:because|since|as|and|which|for|but|so|is|with|due|in|from|given|-|\(|,)",
    re.IGNORECASE,
)
_CHOOSE = re.compile(
    r"\b(?:choose|pick|select|go\swith|choosing|correct\s(?:option|choice)\sis"
    r"|(?:option|choice)\sis)\b",
    re.IGNORECASE,
)
_IS_CORRECT = re.compile(
    r"(?<![A-Za-z'])(?P<letter>[A-Z])(?:\s?[)\]*_\".:]{1,4})?\s"
    r"(?:is|seems|would\sbe|must\sbe)\s(?:the\s|therefore\s|clearly\s|only\s){0,2}"
    r"(?:correct|right|best|answer)\b"
)
_DRESSED = re.compile(
    r"(?<![A-Za-z0-9'])(?:\((?P<round>[A-Z])\)|\[(?P<square>[A-Z])\]|\*\*(?P<bold>[A-Z])\*\*"
    r"|(?P<half>[A-Z])\)|(?:(?<=\n)|(?<![\s\S]))\s{0,3}(?P<line>[A-Z])[.:](?=\s|$))"
)
_ALONE = re.compile(r"[\s*_\"'`(\[$]{0,10}(?P<letter>[A-Za-z])[\s*_\"'`)\].$:]{0,10}")
_CAPITAL = re.compile(r"(?<![A-Za-z'])[A-Z](?![A-Za-z'])")
_ENDS_IN_CAPITAL = re.compile(r"(?:^|[\s:(\[*\"])[A-Z][)\]*\".\s]{0,6}$")
_NEGATED = re.compile(
    r"\b(?:not|nor|neither)\s(?:option\s|choice\s)?[(\[*]{0,3}[A-Z](?![A-Za-z'])[)\]*]{0,3}"
)
_PLAIN = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"}
)
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_DENIALS = {"not", "isn't", "never", "nor", "neither", "cannot", "can't", "aren't", "wasn't"}
_ARTICLES = {"a", "an", "the", "in", "at", "be", "on"}

_NO_CHOICE = "?"
"""Stands for a letter that is named as the answer and is no option's."""


def extract(text: str, choices: Sequence[str]) -> str | None:
    """The chosen option's letter, or None. Without `choices` the options are A to J."""
    found = (_extract(reading, choices) for reading in readings(text.translate(_PLAIN)))
    return next(filter(None, found), None)


def _extract(text: str, choices: Sequence[str]) -> str | None:
    allowed = LETTERS[: len(choices) or 10]
    if (whole := _exactly(text, choices) or _letter_and_text(text, choices)) is not None:
        return whole
    text = _NEGATED.sub(" not ", text.strip())
    statements = [s for s in find(text) if s.mark != "label" or not _is_option_a(text, s)]
    named = _named(text, statements, choices, allowed)
    if named:
        return _only(named)
    told = {
        letter
        for statement in statements
        if (letter := _told(text, statement, choices)) is not None
    }
    if told:
        return _only(told)
    dressed = {letter for match in _DRESSED.finditer(text) for letter in match.groups() if letter}
    dressed |= _letters_at(text[:WINDOW], choices, allowed)
    dressed |= _alone_on_a_line(text, allowed) | _last_word(text)
    dressed &= set(allowed)
    if dressed:
        return _only(dressed)
    return _mentioned(last_sentence(text), choices) or _mentioned(text, choices)


def _only(letters: set[str]) -> str | None:
    (first, *others) = letters
    return None if others or first == _NO_CHOICE else first


def _is_option_a(text: str, statement: Statement) -> bool:
    """Whether a label is the first of a list of options ("A: Michigan")."""
    return text[max(0, statement.end - 4) : statement.end].strip(" \t*_>:=\n").lower() == "a"


def _named(
    text: str, statements: Sequence[Statement], choices: Sequence[str], allowed: str
) -> set[str]:
    """Letters that are explicitly named as the answer."""
    named: set[str] = set()
    for statement in statements:
        named |= _letters_at(statement.text, choices, allowed)
    for match in list(_CHOOSE.finditer(text))[-MOST_MARKS:]:
        named |= _letters_at(text[match.end() : match.end() + WINDOW], choices, allowed)
    for match in _IS_CORRECT.finditer(text):
        named.add(match["letter"] if match["letter"] in allowed else _NO_CHOICE)
    return named


def _letters_at(window: str, choices: Sequence[str], allowed: str) -> set[str]:
    """The letter that a window begins with, and a second one where it hedges. An option's text may
    look like a letter, too ("A bison", "I, II and III"), or have letters in it ("32 degrees F")."""
    if _exactly(_first_line(window), choices) is not None:
        return set()
    match = _first_letter(window)
    if match is None:
        return set()
    rest, letter = window[match.end() :], match["letter"].upper()
    opened = match.start() > 0 and window[match.start() - 1] in "([{*\"'$"
    if not _is_letter(match, rest, opened, choices):
        return set()
    if letter not in allowed:
        return {_NO_CHOICE} if match["dress"].strip() else set()
    letters = {letter}
    rest = _behind(rest, choices[LETTERS.index(letter)] if choices else "")
    if second := _SECOND.match(rest) or _OR_ELSE.search(first_sentence(rest)):
        letters |= {group for group in second.groups() if group}
    if (told := _exactly(first_sentence(rest), choices)) is not None:
        letters.add(told)
    return letters


def _is_letter(match: re.Match[str], rest: str, opened: bool, choices: Sequence[str]) -> bool:
    """Whether a single letter is an option's and not an English word ("a bank", "I think")."""
    dress = match["dress"].strip()
    at_end = not rest.strip() or rest.lstrip(" \t").startswith(("\n", "</"))
    if at_end or any(mark in dress for mark in ")]"):
        return True
    if match["letter"].islower():
        return opened and bool(dress)
    if dress or match["letter"] not in "AI":
        return True
    return bool(_CONNECTIVE.match(rest)) or _exactly(first_sentence(rest), choices) is not None


def _told(text: str, statement: Statement, choices: Sequence[str]) -> str | None:
    """The option whose text a statement names. A heading may be followed by the reasoning, so it
    counts only if nothing else follows it."""
    if statement.mark == "label" and not is_last(text, statement):
        return _exactly(_first_line(statement.text), choices)
    line = _exactly(_first_line(statement.text), choices)
    sentence = statement.text if statement.mark == "boxed" else statement.sentence
    return line or _exactly(sentence, choices) or _mentioned(sentence, choices)


def _alone_on_a_line(text: str, allowed: str) -> set[str]:
    """A letter that is all of the first or of the last line."""
    lines = (text.split("\n", 1)[0][:WINDOW], text.rsplit("\n", 1)[-1][-WINDOW:])
    matches = (_ALONE.fullmatch(line) for line in lines)
    return {match["letter"].upper() for match in matches if match} & set(allowed)


def _last_word(text: str) -> set[str]:
    """A capital letter that ends the text and is the only one in its line ("Thus, it is D.")."""
    line = text.rsplit("\n", 1)[-1][-WINDOW:]
    letters = set(_CAPITAL.findall(line)) - {"I"}
    return letters if len(letters) == 1 and _ENDS_IN_CAPITAL.search(line) else set()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.translate(_PLAIN).lower())


def _first_letter(text: str) -> re.Match[str] | None:
    filler = _FILLER.match(text)
    return _LETTER.match(text, filler.end() if filler else 0)


def _first_line(text: str) -> str:
    return text.lstrip(" \t\r\n*_:$`").split("\n", 1)[0]


def _letter_and_text(text: str, choices: Sequence[str]) -> str | None:
    """The option that a whole text is with its letter in front ("D) Venice")."""
    match = _first_letter(text)
    if match is None or not match["dress"].strip():
        return None
    letter = match["letter"].upper()
    return letter if _exactly(text[match.end() :], choices) == letter else None


def _behind(text: str, choice: str) -> str:
    """What follows the option's own text, if the text begins with it."""
    option = _words(choice)
    found = list(itertools.islice(_WORD.finditer(text), len(option)))
    return text[found[-1].end() :] if option and [m[0].lower() for m in found] == option else text


def _exactly(text: str, choices: Sequence[str]) -> str | None:
    """The option that the whole text is: sign by sign, or else without regard to capitals, or else
    word by word apart from an article. A single letter is an option's letter and not a text."""
    if _ALONE.fullmatch(text):
        return None
    for same in (_signs, _small_signs, _without_article):
        said = same(text)
        found = [
            letter
            for letter, choice in zip(LETTERS, choices, strict=False)
            if said and same(choice) == said
        ]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _signs(text: str) -> str:
    return " ".join(text.split()).strip(" .!\"'") or text.strip()


def _small_signs(text: str) -> str:
    return _signs(text.casefold())


def _without_article(text: str) -> list[str]:
    words = _words(text)
    return words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words


def _mentioned(text: str, choices: Sequence[str]) -> str | None:
    """The only option whose text occurs in the text, whole words only. An option within a longer
    one that occurs ("bank" in "river bank") and one that is denied do not count."""
    said = f" {' '.join(_words(text))} "
    phrases = {
        letter: f" {' '.join(_words(choice))} "
        for letter, choice in zip(LETTERS, choices, strict=False)
    }
    found = {
        letter: phrase
        for letter, phrase in phrases.items()
        if phrase.strip() and _affirmed(said, phrase)
    }
    longest = [
        letter
        for letter, phrase in found.items()
        if not any(phrase in other and phrase != other for other in found.values())
    ]
    return longest[0] if len(longest) == 1 else None


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
