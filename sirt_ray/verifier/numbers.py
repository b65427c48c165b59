"""Which number a text gives as its answer.

Final answers are read in this order:

1. the last statement that names a number ("#### 18", a box, "The answer is 18", "A: 18"), or the
   number that is the whole text;
2. as the last resort, a guess from the last sentence that has a number (`_guessed`), a question or
   a note at the end not counted.

A text without a figure may spell its number out ("The answer is eighteen.").
"""

import re
from collections import deque

from sirt_ray.verifier import numerals
from sirt_ray.verifier.numerals import LONGEST_NUMBER, Number, equal, numbers_in, plain
from sirt_ray.verifier.statements import (
    WINDOW,
    Found,
    Statement,
    find,
    is_last,
    last_sentence,
    readings,
    sentence_at,
)

_DIRECT = re.compile(
    r"[\s*_:=$(\[{\\\"'~≈]{0,20}"
    r"(?:(?:about|approximately|around|roughly|exactly|simply|only|just|indeed|therefore|thus"
    r"|either|equal\sto|a\stotal\sof|[A-Za-z]\s?=)\s{0,3})?"
    r"[\s*_:=$(\[{\\\"'~≈]{0,20}",
    re.IGNORECASE,
)
_ARITHMETIC = re.compile(r"[=+\u00d7\u00f7]|(?<!\*)\*(?!\*)|\s[-/x]\s")
_ANOTHER = re.compile(r"[^.\n0-9]{0,30}\bor\s[^0-9]{0,3}\Z", re.IGNORECASE)
_UNIT = re.compile(r"[\s*_$}]{0,4}(?!or\b)([A-Za-z]+)")
_BOLD = re.compile(r"\*\*([^*\n]{1,60})\*\*")
_LIST = re.compile(r"[\s*_:]{0,10}1[.)]\s[^\n]{0,300}\n\s{0,8}[*_]{0,2}2[.)]\s")
_ASIDE = re.compile(
    r"(?<=\s)\([^()]{0,80}[A-Za-z]{2}[^()]{0,80}\)|(?<=[A-Za-z]\s)\([^()]{0,80}\)(?=[\s.*]{0,4}\Z)"
)
_REASON = re.compile(
    r"\s(?:because|since|if|when|which\s(?:is|are|means))\b(?![^=]*=)(?!\s[^\s0-9]{0,3}[0-9.,]{1,20}\Z)"
)
_NEW_CLAUSE = re.compile(
    r",|\b(?:so|then|which|therefore)\b|\band\s(?:he|she|it|they|we|the|so|then|there)\b"
)
_NOTE = re.compile(r"\n[\s*_(\[]{0,8}(?:note|please\snote|remember|keep\sin\smind|p\.?s)\b", re.I)
_CIRCUMSTANCE = re.compile(
    r"\b(?:after|in|for|over|within|during|on|than)\s"
    r"(?:(?:the|those|these|all|his|her|their|its|only|just|every|each|next|last|first)\s){0,2}(?:[a-z]{1,12}\sof\s)?\Z"
)
"""What "5" is in "She earns $90 in 5 days"."""
_GIVEN = re.compile(
    r"\b(?:(?:the|those|these|all|his|her|their|its)\s(?:other\s|first\s|last\s|next\s)?"
    r"|(?<!\bneed\s)(?<!needs\s)(?<!needed\s)(?<!\bha[sd]\s)(?<!have\s)(?<!able\s)(?<!going\s)"
    r"(?<!\bup\s)(?<!\bout\s)(?<!wants\s)to\s"
    r"(?!(?:about|around|approximately|nearly|an?|the|only|just|find|get|give|obtain|reach|be|have)\s)"
    r"[a-z]{2,12}\s(?:[a-z]{1,12}\s){0,2})\Z"
)
"""What "50" is in "She needs 5 shelves to hold all 50 books", where another number comes first."""
_NOUN = re.compile(r"[\s-][A-Za-z]")
_CURRENCY = re.compile(r"[$€£¥₹]")
_CONCLUSION = re.compile(r"[\s*_]{0,4}(?:so|thus|therefore|hence|in\s(?:total|all))\b", re.I)


def extract(text: str) -> Found | None:
    """The final answer as a plain number ("$1,234.50" -> "1234.5"), or None."""
    said = [plain(reading) for reading in readings(text)]
    for reading in said:
        found = _extract(reading)
        if found is not None or next(numbers_in(reading), None) is not None:
            return found
    return next(filter(None, map(_spelled_out, said)), None)


def _spelled_out(text: str) -> Found | None:
    """A number in words is no answer where it is only mentioned ("the two of them")."""
    figures = numerals.in_figures(text)
    if figures == text:
        return None
    found = _extract(figures)
    short = len(text) <= LONGEST_NUMBER or _CONCLUSION.match(last_sentence(text))
    return found if found and (found.stated or short) else None


def _extract(text: str) -> Found | None:
    for statement in reversed(find(text)):
        numbers = list(numbers_in(statement.text))
        stated = _stated(text, statement, numbers)
        if stated is None:
            continue
        following = next((n for n in numbers if n.start >= stated.end), None)
        hedged = following is not None and _hedged(statement.text, stated, following)
        return None if hedged else Found(str(stated), stated=True)
    return _last(text)


def _last(text: str) -> Found | None:
    """The number that is all of the text or of its first paragraph, or else the one to guess."""
    said = text.rstrip()
    first, more, _ = said.partition("\n\n")
    if more and (alone := _alone(first)) is not None:
        return Found(str(alone), stated=True)
    if said.endswith("?"):
        said = said[: said.rfind(last_sentence(said))]
    if more and (note := deque(_NOTE.finditer(said), maxlen=1)):
        said = said[: note[0].start()]
    last = deque(numbers_in(said), maxlen=2)
    if not last:
        said, last = text, deque(numbers_in(text), maxlen=2)
    if not last:
        return None
    if len(last) == 1 and _alone(said) is not None:
        return Found(str(last[0]), stated=True)
    sentence = sentence_at(said, last[-1].start)
    # Most sentences with a number have one.
    several = len(last) > 1 and last[-2].start >= said.rfind(sentence, 0, last[-1].end + WINDOW)
    guess = _guessed(sentence) if several else None
    return Found(str(guess or last[-1]), stated=False)


def _alone(text: str) -> Number | None:
    """The number that a text is, apart from signs."""
    numbers = list(numbers_in(text)) if len(text) <= LONGEST_NUMBER else []
    if len(numbers) != 1:
        return None
    around = text[: numbers[0].start] + text[numbers[0].end :]
    return None if any(map(str.isalnum, around)) else numbers[0]


def _guessed(sentence: str) -> Number | None:
    """What the sentence comes to: its bold number, the result of its last equation, or the last
    number that is no circumstance, those in asides and reasons not counted.

    On the gold solutions of GSM8K's training questions, whose last line says the answer in many
    words, the last number of all (`flexible-extract` of the lm-evaluation-harness) is another one
    three times as often.
    """
    sentence = _without_asides(sentence)
    numbers = list(numbers_in(sentence))
    if len(numbers) < 2:
        return numbers[0] if numbers else None
    if "**" in sentence and (bold := _bold(sentence)):
        return bold
    result = _result(sentence, numbers)
    if result and not _NEW_CLAUSE.search(sentence, result.end, numbers[-1].start):
        return result
    return _told(sentence, numbers)


def _told(sentence: str, numbers: list[Number]) -> Number:
    """The last number that is no circumstance."""
    told = [n for n in numbers if not _is_circumstance(sentence, n)]
    if len(told) > 1:
        told[1:] = [n for n in told[1:] if not _is_given(sentence, told[0], n)]
    return (told or numbers)[-1]


def _is_given(sentence: str, first: Number, number: Number) -> bool:
    counts = _NOUN.match(sentence, number.end)
    return counts is not None and _GIVEN.search(sentence, first.end, number.start) is not None


def _is_circumstance(sentence: str, number: Number) -> bool:
    before = sentence[max(0, number.start - 40) : number.start]
    money = _CURRENCY.search(sentence, number.start, number.end)
    return money is None and _CIRCUMSTANCE.search(before) is not None


def _without_asides(text: str) -> str:
    """The text with blanks for what it adds in brackets, up to where it goes on to give reasons;
    as it is where no number would be left."""
    shorter = _ASIDE.sub(lambda match: " " * len(match[0]), text) if "(" in text else text
    if reason := _REASON.search(shorter):
        shorter = shorter[: reason.start()]
    if shorter == text:
        return text
    return shorter if next(numbers_in(shorter), None) is not None else text


def _result(span: str, numbers: list[Number]) -> Number | None:
    """The number behind the last "=", where it is not calculated with."""
    equals = span.rfind("=")
    if equals < 0 or _ARITHMETIC.search(span, equals + 1):
        return None
    return next((n for n in numbers if n.start > equals), None)


def _bold(text: str) -> Number | None:
    """The last bold number."""
    bold = (list(numbers_in(match[1])) for match in _BOLD.finditer(text))
    return next((numbers[0] for numbers in reversed(list(bold)) if len(numbers) == 1), None)


def _hedged(text: str, stated: Number, following: Number) -> bool:
    """Whether another number is named beside the first ("18 or 20"). The same in another unit is
    none ("1.5 hours or 90 minutes")."""
    between = text[stated.end : following.start]
    if not _ANOTHER.fullmatch(between) or equal(str(stated), str(following)):
        return False
    unit, other = _UNIT.match(between), _UNIT.match(text, following.end)
    return unit is None or other is None or unit[1].lower() == other[1].lower()


def _stated(text: str, statement: Statement, numbers: list[Number]) -> Number | None:
    """The number that a statement names, if it names one."""
    lead = len(statement.text) - len(statement.text.lstrip(" \t\r\n*_:$`"))
    limit = lead + len(statement.sentence)
    inside = numbers if statement.mark == "boxed" else [n for n in numbers if n.start < limit]
    if not inside:
        return None
    span = statement.text if statement.mark == "boxed" else statement.text[:limit]
    if _LIST.match(statement.text):
        return None
    if statement.mark == "hash":
        rest = span[inside[0].end :]
        whole_line = len(inside) == 1 and len(rest) <= 30
        return inside[0] if _is_direct(span, inside[0]) and whole_line else None
    if statement.mark == "is" and len(inside) > 1 and (shorter := _without_asides(span)) != span:
        span, inside = shorter, list(numbers_in(shorter))
    result = _result(span, inside)
    if statement.mark == "boxed":
        return result or (inside[0] if len(inside) == 1 else None)
    if statement.mark == "label" and not is_last(text, statement):
        first = inside[0]
        reasoning = _ARITHMETIC.search(span[first.end :])
        return first if _is_direct(span, first) and not reasoning else None
    if result or _is_direct(span, inside[0]):
        return result or inside[0]
    return _bold(span) or _told(span, inside)


def _is_direct(span: str, number: Number) -> bool:
    match = _DIRECT.match(span)
    return match is not None and number.start <= match.end()
