"""Where a text names an option by its letter: "(B)", "**B**", "b) Venice", "option B or C"."""

import re
from collections.abc import Sequence

from sirt_ray.core.option_texts import behind, exactly
from sirt_ray.types import LETTERS
from sirt_ray.verifier.statements import first_sentence

_FILLER = re.compile(
    r"[\s:*_\"'`$({<\[\\]{0,20}"
    r"(?:(?:the\s)?(?:option|choice|letter|answer|textbf|text|mathrm|mathbf|boxed"
    r"|clearly|probably|(?:most\s)?likely|definitely|therefore|thus|simply|obviously|indeed|also"
    r"|to\sbe)\b"
    r"[\s:({\[*_\"'$]{0,10}){0,3}",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"(?P<letter>[A-Za-z])(?![A-Za-z0-9-]|'[A-Za-z])(?P<dress>[ ]?[)\]}.:*_,;\"'$`\\]{0,8})"
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

NO_CHOICE = "?"
"""Stands for a letter that is named as the answer and is no option's."""


def letters_at(window: str, choices: Sequence[str], allowed: str) -> set[str]:
    """The letter that a window begins with, and a second one where it hedges. An option's text may
    look like a letter, too ("A bison", "I, II and III"), or have letters in it ("32 degrees F")."""
    if exactly(first_line(window), choices) is not None:
        return set()
    match = _first_letter(window)
    if match is None:
        return set()
    rest, letter = window[match.end() :], match["letter"].upper()
    opened = match.start() > 0 and window[match.start() - 1] in "([{*\"'$"
    if not _is_letter(match, rest, opened, choices):
        return set()
    if letter not in allowed:
        return {NO_CHOICE} if match["dress"].strip() else set()
    letters = {letter}
    rest = behind(rest, choices[LETTERS.index(letter)] if choices else "")
    ended = "." in match["dress"] and not rest.lstrip().startswith(("or ", "and "))
    if second := (None if ended else _SECOND.match(rest)) or _OR_ELSE.search(first_sentence(rest)):
        letters |= {group for group in second.groups() if group}
    if (told := exactly(first_sentence(rest), choices)) is not None:
        letters.add(told)
    return letters


def _is_letter(match: re.Match[str], rest: str, opened: bool, choices: Sequence[str]) -> bool:
    """Whether a single letter is an option's and not an English word ("a bank", "I think")."""
    dress = match["dress"].strip()
    at_end = not rest.strip() or rest.lstrip(" \t").startswith(("\n", "</"))
    if at_end or any(mark in dress for mark in ")]"):
        return True
    if match["letter"].islower():
        clear = bool(dress) or bool(_CONNECTIVE.match(rest))
        return clear and (opened or match["letter"] not in "ai")
    if dress or match["letter"] not in "AI":
        return True
    return bool(_CONNECTIVE.match(rest)) or exactly(first_sentence(rest), choices) is not None


def _first_letter(text: str) -> re.Match[str] | None:
    filler = _FILLER.match(text)
    return _LETTER.match(text, filler.end() if filler else 0)


def first_line(text: str) -> str:
    return text.lstrip(" \t\r\n*_:$`").split("\n", 1)[0]


def letter_and_text(text: str, choices: Sequence[str]) -> str | None:
    """The option that a whole text is with its letter in front ("D) Venice")."""
    match = _first_letter(text)
    if match is None or not match["dress"].strip():
        return None
    letter = match["letter"].upper()
    return letter if exactly(text[match.end() :], choices) == letter else None
