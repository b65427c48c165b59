"""Which option a text chooses.

The rules in order; where one of them finds two different letters, there is no answer:

1. the letters that the text names as its answer ("The answer is (B)", "The correct answer is: D)
   Venice", "Option B is the best choice"), or else chooses or calls correct ("I would go with B");
2. an option's text named as the answer ("The answer is Venice"), or its position ("option 4");
3. an option that is the first line ("D) Venice", as few-shot prompts have it), where no other line
   is one;
4. the only letter that is marked as an option's ("B", "(B)", "**B**"), which a list of all options
   does not have;
5. as a guess, what a conclusion at the end mentions ("Therefore, D) Venice is ..."), or else the
   only option whose text the last sentence or the whole text mentions.
"""

import itertools
import re
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from sirt_ray.types import LETTERS
from sirt_ray.verifier.statements import (
    MOST_MARKS,
    WINDOW,
    FinalAnswer,
    Statement,
    find,
    first_sentence,
    is_last,
    last_sentence,
    readings,
)

_PLAIN = str.maketrans(
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
_NO_OPTION = "?"
"""In place of a letter that is named as the answer and is no option's."""

# Letters that are called correct, chosen or named.

_LETTER_IS_CORRECT = re.compile(
    r"(?<![A-Za-z'])(?P<letter>[A-Z])(?:\s?[)\]*_\".:]{1,4}(?P<text>\s[^\n]{1,160}?)?)?[*_]{0,3}\s"
    r"(?:is|seems|would\sbe|must\sbe)\s(?:the\s|our\s|my\s|therefore\s|clearly\s|only\s){0,2}"
    r"(?:(?:correct|right|best|better|(?:more|most)\s[a-z]{3,12}"
    r"|(?:one|option|choice)\sthat\s(?:best|fits|makes\s(?:the\smost\s)?sense))"
    r"\b(?P<noun>\s(?:answer|option|choice))?"
    r"|(?P<answer>answer))\b"
)
_ONLY_IF = re.compile(r"\bwould\s[^.\n]{0,60}\sif\b")
_ALTERNATIVE = re.compile(
    r"(?<![A-Za-z'])([A-Z])[)\]*]{0,3}\s(?:or|and)\s(?:option\s)?[(\[*]{0,3}\Z", re.IGNORECASE
)
_TEXT_IS_CORRECT = re.compile(
    r"\s(?:is|would\sbe|must\sbe)\sthe\s(?:correct|right|best|most\s[a-z]{3,12})\s(?:answer|option|choice)"
)
_CHOOSING = re.compile(
    r"[CcGgOoPpSs](?<!\w[A-Za-z])(?<!not\s[A-Za-z])(?<!n't\s[A-Za-z])(?i:(?<=c)hoos(?:e|ing)|(?<=p)ick"
    r"|(?<=s)elect|(?<=g)o\swith|(?:(?<=o)ption|(?<=c)hoice)\s(?:here\s)?(?:is|would\sbe|must\sbe))\b"
)
_VERDICT = re.compile(
    r"(?<![A-Za-z'])(?P<letter>[A-Z])[)\]*.:]{1,4}[^\n]{1,200}?(?:[.:;-][*_]{0,3}\s{1,3}"
    r"(?:(?:This|It)\s(?:(?:option|choice|answer)\s)?is\s(?:the\s)?(?:correct|right|best)|[Cc]orrect)\b"
    r"|\s[\u2705\u2713\u2714])"
)
_VERDICT_SIGNS = (
    "This ",
    "It is",
    "Correct",
    "- correct",
    ": correct",
    "\u2705",
    "\u2713",
    "\u2714",
)
"""A text without any of them has no verdict on an option."""
_POSITION = re.compile(
    r"[\s:*_(]{0,6}(?:(?:option|choice|solution|number)\s)?(?P<position>[1-9])(?=[\s.)*:]|\Z)(?!\.[0-9])",
    re.IGNORECASE,
)
_MARKED_LETTER = re.compile(
    r"(?<![A-Za-z0-9'])(?:\((?P<round>[A-Z])\)|\[(?P<square>[A-Z])\]|\*\*(?P<bold>[A-Z])\*\*"
    r"|(?P<half>[A-Z])\)|(?:(?<=\n)|(?<![\s\S]))\s{0,3}(?P<line>[A-Z])[.:](?=\s|$))"
)
_NAMED_LAST = re.compile(
    r"\b(?:is|be|choose|pick)[\s:*]{1,4}[(\[*\"]{0,3}([A-Z])[)\]*\".\s]{0,6}\Z"
)
_CAPITAL = re.compile(r"(?<![A-Za-z'])[A-Z](?![A-Za-z'])")
_ENDS_IN_CAPITAL = re.compile(r"(?:^|[\s:(\[*\"])[A-Z][)\]*\".\s]{0,6}$")
_CONCLUSION = re.compile(
    r"[\s*_]{0,4}(?:so|thus|therefore|hence|overall|finally|in\s(?:conclusion|summary|short)|based\son"
    r"|given|considering|among|of\sthe)\b",
    re.IGNORECASE,
)
_NONE_OF_THEM = re.compile(
    r"\bnone of (?:the (?:given |provided |listed )?(?:above|options|choices|answers)|these)",
    re.IGNORECASE,
)

# The letter at the start of a window, and what distinguishes it from a word.

_FILLER = re.compile(
    r"[\s:*_\"'`$({<\[\\]{0,20}"
    r"(?:(?:the\s)?(?:option|choice|letter|answer|textbf|text|mathrm|mathbf|boxed"
    r"|clearly|probably|(?:most\s)?likely|definitely|therefore|thus|simply|obviously|indeed|also"
    r"|to\sbe)\b"
    r"[\s:({\[*_\"'$]{0,10}){0,3}",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"(?P<letter>[A-Za-z])(?![A-Za-z0-9-]|'[A-Za-z])(?P<marks>[ ]?[)\]}.:*_,;\"'$`\\]{0,8})"
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
_SINGLE_LETTER = re.compile(r"[\s*_\"'`(\[$]{0,10}(?P<letter>[A-Za-z])[\s*_\"'`)\].$:!?]{0,10}")
"""A single letter is an option's name and not its text."""

# Denials and corrections.

_NOT_LETTER = re.compile(
    r"n(?<!\wn)(?:o[rt]|either)\s(?:option\s|choice\s)?[(\[*]{0,3}[A-Z](?![A-Za-z'])[)\]*]{0,3}"
)
_DENIAL_SIGNS = (
    "wrong",
    "incorrect",
    " not ",
    "n't",
    "unlikely",
    " out ",
    "liminat",
    "xclud",
    " but ",
)
"""A text without any of them denies letters only with "not", "nor" and "neither"."""
_OPTION_NAME = r"(?:options?\s|choices?\s)?[(\[*]{0,3}(?<![A-Za-z'])[A-Z](?![A-Za-z'])[)\]*.:]{0,4}"
_DENIED_LETTERS = re.compile(
    rf"{_OPTION_NAME}(?:\s\([^()\n]{{1,160}}\))?\s"
    r"(?:(?:is|was|seems|would\sbe|are)\s(?:also\s|clearly\s|simply\s)?"
    r"(?:not|wrong|incorrect|unlikely|less|false)|(?:isn't|wasn't|cannot|can't|doesn't)"
    r"|(?:might|may|could|seems)\s[^.\n]{1,40}?\bbut)\b"
    r"|(?:[Ee]liminat|[Ee]xclud|[Rr]ul)[a-z]{1,3}\s(?:out\s)?"
    rf"{_OPTION_NAME}(?:(?:,|,?\s(?:and|or))\s{_OPTION_NAME}){{0,9}}"
)
_RETRACTED = re.compile(
    r"\b(?:wait|actually|correction|scratch\sthat|(?:up)?on\s(?:closer|second|further|re)[a-z-]{0,12}"
    r"|let(?:'s|[ ]me)\s(?:re|double|correct)[a-z-]{0,12}|(?:mistake|error|mistaken)"
    r"|that(?:'s|\sis)\s(?:not\s(?:right|correct)|wrong|incorrect)|reconsider[a-z]{0,3})\b",
    re.IGNORECASE,
)

# Texts of options.

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_DETERMINERS = {"a", "an", "the"}
_SKIPPED_WORDS = {*_DETERMINERS, "in", "at", "be", "on"}
_DENIALS = {"not", "isn't", "never", "nor", "neither", "cannot", "can't", "aren't", "wasn't"}
_DENIED_AFTER = re.compile(
    r"(?:also |clearly |simply )?"
    r"(?:(?:is|are|was|were|would|does|do|could|can|may|seems)(?: be)?"
    r"(?: also| clearly| simply| probably)? "
    r"(?:not|unlikely|incorrect|wrong|eliminated|ruled out|excluded)"
    r"|isn't|aren't|wasn't|doesn't|don't|wouldn't|cannot|can't)\b"
)
"""For words that are separated by one blank."""


def extract(text: str, choices: Sequence[str]) -> FinalAnswer | None:
    """Return the chosen option's letter, or None. Without `choices` the options are A to J."""
    found = (_extract(reading, choices) for reading in readings(text.translate(_PLAIN)))
    return next(filter(None, found), None)


def _extract(text: str, choices: Sequence[str]) -> FinalAnswer | None:
    allowed = LETTERS[: len(choices) or 10]
    if (whole := _whole_option(text, choices)) is not None:
        return FinalAnswer(whole, stated=True)
    text = _without_denied(text.strip())
    answer, correct = _called_correct(text, choices, allowed)
    statements = [s for s in find(text) if s.mark != "label" or not _is_option_a(text, s)]
    for letters in (
        lambda: answer.union(*(_letters_at(s.text, choices, allowed) for s in statements)),
        lambda: correct | _chosen_letters(text, choices, allowed),
        lambda: _stated_texts(text, statements, choices),
        lambda: _stated_positions(statements, choices),
        lambda: _option_of_first_line(text, choices),
    ):
        if found := letters():
            return _single(
                found if len(found) == 1 else _after_correction(text, found, choices), stated=True
            )
    marked = {
        letter for match in _MARKED_LETTER.finditer(text) for letter in match.groups() if letter
    }
    marked |= _letters_at(text[:WINDOW], choices, allowed)
    last = last_sentence(text)
    ending = _final_letter(text, last)
    marked |= _single_letter_lines(text, allowed) | ending
    marked &= set(allowed)
    if len(marked) == 1:
        return _single(marked, stated=True)
    if concluded := _concluded(last, allowed) or ending & set(allowed):
        return _single(concluded, stated=False)
    if marked:
        return None
    guess = _mentioned_option(last, choices) or _mentioned_option(text, choices)
    if _NONE_OF_THEM.search(text) and not any(map(_NONE_OF_THEM.search, choices)):
        return None
    return None if guess is None else FinalAnswer(guess, stated=False)


def _single(letters: set[str], *, stated: bool) -> FinalAnswer | None:
    (first, *others) = letters
    return None if others or first == _NO_OPTION else FinalAnswer(first, stated)


def _is_option_a(text: str, statement: Statement) -> bool:
    """Return whether a label is the first of a list of options ("A: Michigan")."""
    return text[max(0, statement.end - 4) : statement.end].strip(" \t*_>:=\n").lower() == "a"


# What `_extract` reads, in its order.


def _called_correct(text: str, choices: Sequence[str], allowed: str) -> tuple[set[str], set[str]]:
    """Return the letters that are called the correct answer, and those that are called correct."""
    answer: set[str] = set()
    correct: set[str] = set()
    position = 0
    while match := _LETTER_IS_CORRECT.search(text, position):
        letter = match["letter"] if match["letter"] in allowed else _NO_OPTION
        of_its_text = match["text"] is None or exact_option(match["text"], choices) == letter
        if of_its_text and not _ONLY_IF.search(text, match.start(), match.end() + WINDOW // 4):
            called = answer if match["noun"] or match["answer"] else correct
            called.add(letter)
            called.update(_ALTERNATIVE.findall(text, max(0, match.start() - 30), match.start()))
        position = match.end() if of_its_text else match.end("letter")
    return answer, correct


def _chosen_letters(text: str, choices: Sequence[str], allowed: str) -> set[str]:
    """Return the letters that are chosen, or that a list of options calls correct."""
    chosen: set[str] = set()
    if _contains_any(text, _VERDICT_SIGNS):
        chosen |= {match["letter"] for match in _VERDICT.finditer(text)} & set(allowed)
    for match in list(_CHOOSING.finditer(text))[-MOST_MARKS:]:
        chosen |= _letters_at(text[match.end() : match.end() + WINDOW], choices, allowed)
    return chosen


def _stated_texts(text: str, statements: Sequence[Statement], choices: Sequence[str]) -> set[str]:
    """Return the options whose texts statements name. A heading may be followed by the reasoning,
    so it counts only if nothing else follows it."""
    named: set[str | None] = set()
    for statement in statements:
        line = exact_option(_first_line(statement.text), choices)
        if statement.mark == "label" and not is_last(text, statement):
            named.add(line)
            continue
        sentence = statement.text if statement.mark == "boxed" else statement.sentence
        named.add(line or exact_option(sentence, choices) or _mentioned_option(sentence, choices))
    for match in list(_TEXT_IS_CORRECT.finditer(text))[-MOST_MARKS:]:
        before = last_sentence(text[max(0, match.start() - WINDOW) : match.start()])
        named.add(_mentioned_option(before, choices))
    return {letter for letter in named if letter is not None}


def _stated_positions(statements: Sequence[Statement], choices: Sequence[str]) -> set[str]:
    """Return the options that statements name by their position ("The answer is option 2"), where
    no option contains a digit itself."""
    positions = [match for s in statements if (match := _POSITION.match(s.text))]
    if not positions or any(character.isdigit() for choice in choices for character in choice):
        return set()
    return {LETTERS[p] for match in positions if (p := int(match["position"]) - 1) < len(choices)}


def _option_of_first_line(text: str, choices: Sequence[str]) -> set[str]:
    """Return the option that is the first line, unless other lines are options as well."""
    lines = [line for line in text.split("\n", MOST_MARKS) if line.strip()]
    first = _whole_option(lines[0], choices) if lines else None
    others = {_whole_option(line, choices) for line in lines[1:]} - {None, first}
    return {first} if first is not None and not others else set()


def _whole_option(text: str, choices: Sequence[str]) -> str | None:
    """Return the option that is the whole text, with or without its letter in front."""
    return exact_option(text, choices) or _letter_and_text(text, choices)


def _after_correction(text: str, letters: set[str], choices: Sequence[str]) -> set[str]:
    """Return, of several letters, the one that the text names after it corrects itself."""
    found = _extract(_correction(text), choices)
    return {found.answer} if found and found.stated and found.answer in letters else letters


def _single_letter_lines(text: str, allowed: str) -> set[str]:
    """Return the letter that is the whole first line, and that which is the whole last line."""
    lines = (text.split("\n", 1)[0][:WINDOW], text.rsplit("\n", 1)[-1][-WINDOW:])
    matches = (_SINGLE_LETTER.fullmatch(line) for line in lines)
    return {match["letter"].upper() for match in matches if match} & set(allowed)


def _final_letter(text: str, line: str) -> set[str]:
    """Return the capital letter that ends the text, whose last sentence is `line`, if it is the
    only one in it ("So it is D.")."""
    if named := _NAMED_LAST.search(line):
        return {named[1]}
    if _SINGLE_LETTER.fullmatch(line) and line != text:
        return set()
    letters = set(_CAPITAL.findall(line)) - {"I"}
    return letters if len(letters) == 1 and _ENDS_IN_CAPITAL.search(line) else set()


def _concluded(sentence: str, allowed: str) -> set[str]:
    """Return the marked letters of a sentence that begins like a conclusion."""
    if not _CONCLUSION.match(sentence):
        return set()
    marked = {letter for match in _MARKED_LETTER.finditer(sentence) for letter in match.groups()}
    return {letter for letter in marked if letter is not None and letter in allowed}


# Letters: "(B)", "**B**", "b) Venice", "option B or C".


def _letters_at(window: str, choices: Sequence[str], allowed: str) -> set[str]:
    """Return the letter at the start of a window, and a second one where the text hedges. An
    option's text may look like a letter ("A bison", "I, II and III") or contain letters ("32
    degrees F")."""
    if exact_option(_first_line(window), choices) is not None:
        return set()
    match = _first_letter(window)
    if match is None:
        return set()
    rest, letter = window[match.end() :], match["letter"].upper()
    opened = match.start() > 0 and window[match.start() - 1] in "([{*\"'$"
    if not _is_letter(match, rest, opened, choices):
        return set()
    if letter not in allowed:
        return {_NO_OPTION} if match["marks"].strip() else set()
    letters = {letter}
    rest = _after_option_text(rest, choices[LETTERS.index(letter)] if choices else "")
    ended = "." in match["marks"] and not rest.lstrip().startswith(("or ", "and "))
    if second := (None if ended else _SECOND.match(rest)) or _OR_ELSE.search(first_sentence(rest)):
        letters |= {group for group in second.groups() if group}
    if (named := exact_option(first_sentence(rest), choices)) is not None:
        letters.add(named)
    return letters


def _is_letter(match: re.Match[str], rest: str, opened: bool, choices: Sequence[str]) -> bool:
    """Return whether a single letter is an option's and not an English word ("a bank", "I
    think")."""
    marks = match["marks"].strip()
    at_end = not rest.strip() or rest.lstrip(" \t").startswith(("\n", "</"))
    if at_end or any(mark in marks for mark in ")]"):
        return True
    if match["letter"].islower():
        clear = bool(marks) or bool(_CONNECTIVE.match(rest))
        return clear and (opened or match["letter"] not in "ai")
    if marks or match["letter"] not in "AI":
        return True
    return bool(_CONNECTIVE.match(rest)) or exact_option(first_sentence(rest), choices) is not None


def _first_letter(text: str) -> re.Match[str] | None:
    filler = _FILLER.match(text)
    return _LETTER.match(text, filler.end() if filler else 0)


def _first_line(text: str) -> str:
    return text.lstrip(" \t\r\n*_:$`").split("\n", 1)[0]


def _letter_and_text(text: str, choices: Sequence[str]) -> str | None:
    """Return the option that is the whole text, with its letter in front ("D) Venice")."""
    match = _first_letter(text)
    if match is None or not match["marks"].strip():
        return None
    letter = match["letter"].upper()
    return letter if exact_option(text[match.end() :], choices) == letter else None


# What a text retracts: options that it rules out, and what it states before a correction.


def _without_denied(text: str) -> str:
    """Return the text without the letters of options that it denies ("not A", "B is wrong because",
    "we can rule out C and D")."""
    if _contains_any(text, _DENIAL_SIGNS):
        text = _DENIED_LETTERS.sub(" not ", text)
    return _NOT_LETTER.sub(" not ", text)


def _correction(text: str) -> str:
    """Return what follows the last correction in the text ("Wait, that is not right"); an empty
    text where there is none."""
    last = deque(_RETRACTED.finditer(text), maxlen=1)
    return text[last[0].end() :] if last else ""


def _contains_any(text: str, signs: Iterable[str]) -> bool:
    """Return whether one of the signs occurs. It is a loop because every response is searched for
    all of them, and a generator is slower."""
    for sign in signs:  # noqa: SIM110
        if sign in text:
            return True
    return False


# Texts of options: which of them a text, in plain punctuation, is or mentions.


def exact_option(text: str, choices: Sequence[str]) -> str | None:
    """Return the option that is the whole text: character by character, or else ignoring case, or
    else word by word without an article. A single letter is an option's letter and not a text."""
    options = _options(tuple(choices))
    if len(text.strip()) > options.longest or not _may_be_option(text, options.first_words):
        return None
    if _SINGLE_LETTER.fullmatch(text):
        return None
    for form, letters in zip(_FORMS, options.letters, strict=True):
        written = form(text)
        if written in letters:
            return letters[written]
    return None


def _may_be_option(text: str, first_words: frozenset[str] | None) -> bool:
    """Return whether the text begins like an option, which is far faster than to find which one."""
    if first_words is None or not text.isascii():
        return True
    first = _WORD.search(text)
    if first is None or (word := first[0].lower()) in first_words:
        return True
    if word not in _DETERMINERS:
        return False
    second = _WORD.search(text, first.end())
    return second is not None and second[0].lower() in first_words


def _mentioned_option(text: str, choices: Sequence[str]) -> str | None:
    """Return the only option whose text occurs in the text, as whole words. An option within a
    longer one that occurs ("bank" in "river bank") and one that is denied do not count."""
    words = f" {' '.join(_words(text))} "
    found = {
        letter: phrase
        for letter, phrase in _phrases(tuple(choices))
        if phrase in words and _affirmed(words, phrase)
    }
    longest = [
        letter
        for letter, phrase in found.items()
        if not any(phrase in other and phrase != other for other in found.values())
    ]
    return longest[0] if len(longest) == 1 else None


def _affirmed(words: str, phrase: str) -> bool:
    """Return whether a phrase occurs at least once without a denial before or after it."""
    position = words.find(phrase)
    while position >= 0:
        before = [
            word
            for word in words[max(0, position - 60) : position].split()
            if word not in _SKIPPED_WORDS
        ]
        denied = before and before[-1] in _DENIALS
        if not denied and not _DENIED_AFTER.match(words, position + len(phrase)):
            return True
        position = words.find(phrase, position + 1)
    return False


def _after_option_text(text: str, choice: str) -> str:
    """Return what follows the option's text, if the text begins with it."""
    option = _all_words(choice).split()
    found = list(itertools.islice(_WORD.finditer(text), len(option)))
    return text[found[-1].end() :] if option and [m[0].lower() for m in found] == option else text


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _stripped(text: str) -> str:
    return " ".join(text.split()).strip(" .!\"'") or text.strip()


def _casefolded(text: str) -> str:
    return _stripped(text.casefold())


def _without_article(text: str) -> str:
    words = _words(text)
    return " ".join(words[len(words) > 1 and words[0] in _DETERMINERS :])


_FORMS = (_stripped, _casefolded, _without_article)


class _Options(NamedTuple):
    longest: int
    """Characters of the longest text that can be one of them, with all that may surround it."""
    letters: tuple[dict[str, str | None], ...]
    """For each of `_FORMS`: an option's text in that form -> its letter; None where several options
    have the same text."""
    first_words: frozenset[str] | None
    """In lower case, with and without an article before them; None where an option has characters
    beyond ASCII, whose lower case is not one to one."""


@lru_cache(maxsize=4096)
def _options(choices: tuple[str, ...]) -> _Options:
    found: list[dict[str, str | None]] = []
    for form in _FORMS:
        letters: dict[str, str | None] = {}
        for letter, choice in zip(LETTERS, choices, strict=False):
            written = form(choice.translate(_PLAIN))
            letters[written] = None if written in letters else letter
        letters.pop("", None)
        found.append(letters)
    longest = 2 * max(map(len, choices), default=0) + 40
    plain = [choice.translate(_PLAIN) for choice in choices]
    if not all(map(str.isascii, plain)):
        return _Options(longest, tuple(found), None)
    words = [
        form.split()[:1] for text in plain for form in (_all_words(text), _without_article(text))
    ]
    return _Options(longest, tuple(found), frozenset(word for first in words for word in first))


@lru_cache(maxsize=4096)
def _phrases(choices: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return each option's letter, and its words with a blank on either side."""
    phrases = ((letter, f" {_all_words(c)} ") for letter, c in zip(LETTERS, choices, strict=False))
    return tuple((letter, phrase) for letter, phrase in phrases if phrase.strip())


@lru_cache(maxsize=4096)
def _all_words(choice: str) -> str:
    return " ".join(_words(choice.translate(_PLAIN)))
