"""Which option a text chooses.

Read in this order; two different letters at the same place mean that there is no answer:

1. the letters that the text names as its answer ("The answer is (B)", "The correct answer is: D)
   Venice", "Option B is the best choice"), or else chooses or calls correct ("I would go with B");
2. an option's text named as the answer ("The answer is Venice"), or its place ("option 4");
3. an option that the first line is ("D) Venice", as few-shot prompts have it), where no other line
   is one;
4. the only letter in an option's dress ("B", "(B)", "**B**"), which a list of all options has not;
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
    Found,
    Statement,
    find,
    first_sentence,
    is_last,
    last_sentence,
    readings,
)

# FOLDED core.option_texts: The texts of options: which one a text, in plain signs, is or mentions.

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


# FOLDED core.option_letters: Where a text names an option by its letter: "(B)", "**B**", "b) Venice", "option B or C".

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


# FOLDED core.denials: What a text takes back: options that it rules out, and what it said before correcting itself.

_NEGATED = re.compile(
    r"n(?<!\wn)(?:o[rt]|either)\s(?:option\s|choice\s)?[(\[*]{0,3}[A-Z](?![A-Za-z'])[)\]*]{0,3}"
)
_DENYING = ("wrong", "incorrect", " not ", "n't", "unlikely", " out ", "liminat", "xclud", " but ")
"""Of a text without them no letter is denied in another way."""
_NAME = r"(?:options?\s|choices?\s)?[(\[*]{0,3}(?<![A-Za-z'])[A-Z](?![A-Za-z'])[)\]*.:]{0,4}"
_DENIED = re.compile(
    rf"{_NAME}(?:\s\([^()\n]{{1,160}}\))?\s"
    r"(?:(?:is|was|seems|would\sbe|are)\s(?:also\s|clearly\s|simply\s)?"
    r"(?:not|wrong|incorrect|unlikely|less|false)|(?:isn't|wasn't|cannot|can't|doesn't)"
    r"|(?:might|may|could|seems)\s[^.\n]{1,40}?\bbut)\b"
    r"|(?:[Ee]liminat|[Ee]xclud|[Rr]ul)[a-z]{1,3}\s(?:out\s)?"
    rf"{_NAME}(?:(?:,|,?\s(?:and|or))\s{_NAME}){{0,9}}"
)
_RETRACTED = re.compile(
    r"\b(?:wait|actually|correction|scratch\sthat|(?:up)?on\s(?:closer|second|further|re)[a-z-]{0,12}"
    r"|let(?:'s|[ ]me)\s(?:re|double|correct)[a-z-]{0,12}|(?:mistake|error|mistaken)"
    r"|that(?:'s|\sis)\s(?:not\s(?:right|correct)|wrong|incorrect)|reconsider[a-z]{0,3})\b",
    re.IGNORECASE,
)


def has_one(text: str, signs: Iterable[str]) -> bool:
    """Whether one of the signs occurs; a loop, since every response is asked about all of them."""
    for sign in signs:  # noqa: SIM110
        if sign in text:
            return True
    return False


def without_denied(text: str) -> str:
    """The text without the letters of options that it denies ("not A", "B is wrong because", "we
    can rule out C and D")."""
    if has_one(text, _DENYING):
        text = _DENIED.sub(" not ", text)
    return _NEGATED.sub(" not ", text)


def corrected(text: str) -> str:
    """What follows the last place where the text corrects itself ("Wait, that is not right");
    empty where it nowhere does."""
    last = deque(_RETRACTED.finditer(text), maxlen=1)
    return text[last[0].end() :] if last else ""


_CHOOSE = re.compile(
    r"[CcGgOoPpSs](?<!\w[A-Za-z])(?<!not\s[A-Za-z])(?<!n't\s[A-Za-z])(?i:(?<=c)hoos(?:e|ing)|(?<=p)ick"
    r"|(?<=s)elect|(?<=g)o\swith|(?:(?<=o)ption|(?<=c)hoice)\s(?:here\s)?(?:is|would\sbe|must\sbe))\b"
)
_IS_CORRECT = re.compile(
    r"(?<![A-Za-z'])(?P<letter>[A-Z])(?:\s?[)\]*_\".:]{1,4}(?P<text>\s[^\n]{1,160}?)?)?[*_]{0,3}\s"
    r"(?:is|seems|would\sbe|must\sbe)\s(?:the\s|our\s|my\s|therefore\s|clearly\s|only\s){0,2}"
    r"(?:(?:correct|right|best|better|(?:more|most)\s[a-z]{3,12}"
    r"|(?:one|option|choice)\sthat\s(?:best|fits|makes\s(?:the\smost\s)?sense))"
    r"\b(?P<noun>\s(?:answer|option|choice))?"
    r"|(?P<answer>answer))\b"
)
_TEXT_IS_CORRECT = re.compile(
    r"\s(?:is|would\sbe|must\sbe)\sthe\s(?:correct|right|best|most\s[a-z]{3,12})\s(?:answer|option|choice)"
)
_ONLY_IF = re.compile(r"\bwould\s[^.\n]{0,60}\sif\b")
_BESIDE = re.compile(
    r"(?<![A-Za-z'])([A-Z])[)\]*]{0,3}\s(?:or|and)\s(?:option\s)?[(\[*]{0,3}\Z", re.IGNORECASE
)
_CONCLUSION = re.compile(
    r"[\s*_]{0,4}(?:so|thus|therefore|hence|overall|finally|in\s(?:conclusion|summary|short)|based\son"
    r"|given|considering|among|of\sthe)\b",
    re.IGNORECASE,
)
_DRESSED = re.compile(
    r"(?<![A-Za-z0-9'])(?:\((?P<round>[A-Z])\)|\[(?P<square>[A-Z])\]|\*\*(?P<bold>[A-Z])\*\*"
    r"|(?P<half>[A-Z])\)|(?:(?<=\n)|(?<![\s\S]))\s{0,3}(?P<line>[A-Z])[.:](?=\s|$))"
)
_NUMBERED = re.compile(
    r"[\s:*_(]{0,6}(?:(?:option|choice|solution|number)\s)?(?P<position>[1-9])(?=[\s.)*:]|\Z)(?!\.[0-9])",
    re.IGNORECASE,
)
_NAMED_LAST = re.compile(
    r"\b(?:is|be|choose|pick)[\s:*]{1,4}[(\[*\"]{0,3}([A-Z])[)\]*\".\s]{0,6}\Z"
)
_CAPITAL = re.compile(r"(?<![A-Za-z'])[A-Z](?![A-Za-z'])")
_ENDS_IN_CAPITAL = re.compile(r"(?:^|[\s:(\[*\"])[A-Z][)\]*\".\s]{0,6}$")
_VERDICT = re.compile(
    r"(?<![A-Za-z'])(?P<letter>[A-Z])[)\]*.:]{1,4}[^\n]{1,200}?(?:[.:;-][*_]{0,3}\s{1,3}"
    r"(?:(?:This|It)\s(?:(?:option|choice|answer)\s)?is\s(?:the\s)?(?:correct|right|best)|[Cc]orrect)\b"
    r"|\s[\u2705\u2713\u2714])"
)
_OF_VERDICTS = ("This ", "It is", "Correct", "- correct", ": correct", "\u2705", "\u2713", "\u2714")
"""A text without them has no verdict on an option."""
_NONE = re.compile(
    r"\bnone of (?:the (?:given |provided |listed )?(?:above|options|choices|answers)|these)",
    re.IGNORECASE,
)


def extract(text: str, choices: Sequence[str]) -> Found | None:
    """The chosen option's letter, or None. Without `choices` the options are A to J."""
    found = (_extract(reading, choices) for reading in readings(text.translate(PLAIN)))
    return next(filter(None, found), None)


def _extract(text: str, choices: Sequence[str]) -> Found | None:
    allowed = LETTERS[: len(choices) or 10]
    if (whole := exactly(text, choices) or letter_and_text(text, choices)) is not None:
        return Found(whole, stated=True)
    text = without_denied(text.strip())
    answer, correct = _called_correct(text, choices, allowed)
    statements = [s for s in find(text) if s.mark != "label" or not _is_option_a(text, s)]
    for letters in (
        lambda: answer.union(*(letters_at(s.text, choices, allowed) for s in statements)),
        lambda: correct | _chosen(text, choices, allowed),
        lambda: _told(text, statements, choices),
        lambda: _numbered(statements, choices),
        lambda: _first(text, choices),
    ):
        if found := letters():
            return _only(
                found if len(found) == 1 else _corrected(text, found, choices), stated=True
            )
    dressed = {letter for match in _DRESSED.finditer(text) for letter in match.groups() if letter}
    dressed |= letters_at(text[:WINDOW], choices, allowed)
    last = last_sentence(text)
    ending = _last_word(text, last)
    dressed |= _alone_on_a_line(text, allowed) | ending
    dressed &= set(allowed)
    if len(dressed) == 1:
        return _only(dressed, stated=True)
    if concluded := _concluded(last, allowed) or ending & set(allowed):
        return _only(concluded, stated=False)
    if dressed:
        return None
    guess = mentioned(last, choices) or mentioned(text, choices)
    if _NONE.search(text) and not any(map(_NONE.search, choices)):
        return None
    return None if guess is None else Found(guess, stated=False)


def _only(letters: set[str], *, stated: bool) -> Found | None:
    (first, *others) = letters
    return None if others or first == NO_CHOICE else Found(first, stated)


def _is_option_a(text: str, statement: Statement) -> bool:
    """Whether a label is the first of a list of options ("A: Michigan")."""
    return text[max(0, statement.end - 4) : statement.end].strip(" \t*_>:=\n").lower() == "a"


def _chosen(text: str, choices: Sequence[str], allowed: str) -> set[str]:
    """Letters that are chosen, or that a list of options calls correct."""
    chosen: set[str] = set()
    if has_one(text, _OF_VERDICTS):
        chosen |= {match["letter"] for match in _VERDICT.finditer(text)} & set(allowed)
    for match in list(_CHOOSE.finditer(text))[-MOST_MARKS:]:
        chosen |= letters_at(text[match.end() : match.end() + WINDOW], choices, allowed)
    return chosen


def _called_correct(text: str, choices: Sequence[str], allowed: str) -> tuple[set[str], set[str]]:
    """The letters that are called the correct answer, and those that are just called correct."""
    answer: set[str] = set()
    correct: set[str] = set()
    position = 0
    while match := _IS_CORRECT.search(text, position):
        letter = match["letter"] if match["letter"] in allowed else NO_CHOICE
        of_its_text = match["text"] is None or exactly(match["text"], choices) == letter
        if of_its_text and not _ONLY_IF.search(text, match.start(), match.end() + WINDOW // 4):
            called = answer if match["noun"] or match["answer"] else correct
            called.add(letter)
            called.update(_BESIDE.findall(text, max(0, match.start() - 30), match.start()))
        position = match.end() if of_its_text else match.end("letter")
    return answer, correct


def _told(text: str, statements: Sequence[Statement], choices: Sequence[str]) -> set[str]:
    """The options whose texts statements name. A heading may be followed by the reasoning, so it
    counts only if nothing else follows it."""
    told: set[str | None] = set()
    for statement in statements:
        line = exactly(first_line(statement.text), choices)
        if statement.mark == "label" and not is_last(text, statement):
            told.add(line)
            continue
        sentence = statement.text if statement.mark == "boxed" else statement.sentence
        told.add(line or exactly(sentence, choices) or mentioned(sentence, choices))
    for match in list(_TEXT_IS_CORRECT.finditer(text))[-MOST_MARKS:]:
        before = last_sentence(text[max(0, match.start() - WINDOW) : match.start()])
        told.add(mentioned(before, choices))
    return {letter for letter in told if letter is not None}


def _numbered(statements: Sequence[Statement], choices: Sequence[str]) -> set[str]:
    """The options that statements name by their place ("The answer is option 2"), where no option
    has a figure itself."""
    places = [match for s in statements if (match := _NUMBERED.match(s.text))]
    if not places or any(character.isdigit() for choice in choices for character in choice):
        return set()
    return {LETTERS[p] for match in places if (p := int(match["position"]) - 1) < len(choices)}


def _first(text: str, choices: Sequence[str]) -> set[str]:
    """The option that the first line is, unless others are listed as well."""
    lines = [line for line in text.split("\n", MOST_MARKS) if line.strip()]
    first = _option(lines[0], choices) if lines else None
    others = {_option(line, choices) for line in lines[1:]} - {None, first}
    return {first} if first is not None and not others else set()


def _option(line: str, choices: Sequence[str]) -> str | None:
    return exactly(line, choices) or letter_and_text(line, choices)


def _corrected(text: str, letters: set[str], choices: Sequence[str]) -> set[str]:
    """Of several letters, the one that the text names after it takes another one back."""
    found = _extract(corrected(text), choices)
    return {found.answer} if found and found.stated and found.answer in letters else letters


def _concluded(sentence: str, allowed: str) -> set[str]:
    """The letters in option's dress in a sentence that begins like a conclusion."""
    if not _CONCLUSION.match(sentence):
        return set()
    dressed = {letter for match in _DRESSED.finditer(sentence) for letter in match.groups()}
    return {letter for letter in dressed if letter is not None and letter in allowed}


def _alone_on_a_line(text: str, allowed: str) -> set[str]:
    """A letter that is all of the first or of the last line."""
    lines = (text.split("\n", 1)[0][:WINDOW], text.rsplit("\n", 1)[-1][-WINDOW:])
    matches = (ALONE.fullmatch(line) for line in lines)
    return {match["letter"].upper() for match in matches if match} & set(allowed)


def _last_word(text: str, line: str) -> set[str]:
    """A capital letter that ends the text, whose last sentence is `line`, and is the only one in it
    ("So it is D.")."""
    if named := _NAMED_LAST.search(line):
        return {named[1]}
    if ALONE.fullmatch(line) and line != text:
        return set()
    letters = set(_CAPITAL.findall(line)) - {"I"}
    return letters if len(letters) == 1 and _ENDS_IN_CAPITAL.search(line) else set()
