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

import re
from collections.abc import Sequence

from sirt_ray.core.denials import corrected, has_one, without_denied
from sirt_ray.core.option_letters import NO_CHOICE, first_line, letter_and_text, letters_at
from sirt_ray.core.option_texts import ALONE, PLAIN, exactly, mentioned
from sirt_ray.types import LETTERS
from sirt_ray.verifier.statements import (
    MOST_MARKS,
    WINDOW,
    Found,
    Statement,
    find,
    is_last,
    last_sentence,
    readings,
)

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
