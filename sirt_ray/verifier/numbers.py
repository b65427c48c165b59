"""Which number a text gives as its answer.

Final answers are read in this order:

1. the last statement that names a number ("#### 18", a box, "The answer is 18", "A: 18"), or the
   number that is the whole text;
2. as the last resort, a guess from the last sentence that has a number (`_guessed`), without a
   question or a note at the end.

A text without a figure may spell its number out ("The answer is eighteen.").
"""

import re
from collections import deque

from sirt_ray.verifier import numerals
from sirt_ray.verifier.numerals import LONGEST_NUMBER, Number, equal, numbers_in, plain
from sirt_ray.verifier.statements import (
    WINDOW,
    FinalAnswer,
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
"""What precedes "5" in "She earns $90 in 5 days"."""
_KNOWN = re.compile(
    r"\b(?:(?:the|those|these|all|his|her|their|its)\s(?:other\s|first\s|last\s|next\s)?"
    r"|(?<!\bneed\s)(?<!needs\s)(?<!needed\s)(?<!\bha[sd]\s)(?<!have\s)(?<!able\s)(?<!going\s)"
    r"(?<!\bup\s)(?<!\bout\s)(?<!wants\s)to\s"
    r"(?!(?:about|around|approximately|nearly|an?|the|only|just|find|get|give|obtain|reach|be|have)\s)"
    r"[a-z]{2,12}\s(?:[a-z]{1,12}\s){0,2})\Z"
)
"""What precedes "50" in "She needs 5 shelves to hold all 50 books", after another number."""
_NOUN = re.compile(r"[\s-][A-Za-z]")
_CURRENCY = re.compile(r"[$€£¥₹]")
_CONCLUSION = re.compile(r"[\s*_]{0,4}(?:so|thus|therefore|hence|in\s(?:total|all))\b", re.I)


def extract(text: str) -> FinalAnswer | None:
    """Return the final answer as a plain number ("$1,234.50" -> "1234.5"), or None."""
    plain_readings = [plain(reading) for reading in readings(text)]
    for reading in plain_readings:
        found = _extract(reading)
        if found is not None or next(numbers_in(reading), None) is not None:
            return found
    return next(filter(None, map(_spelled_out, plain_readings)), None)


def _spelled_out(text: str) -> FinalAnswer | None:
    """Return a number in words, which is no answer where it is only mentioned ("the two of
    them")."""
    figures = numerals.in_figures(text)
    if figures == text:
        return None
    found = _extract(figures)
    short = len(text) <= LONGEST_NUMBER or _CONCLUSION.match(last_sentence(text))
    return found if found and (found.stated or short) else None


def _extract(text: str) -> FinalAnswer | None:
    for statement in reversed(find(text)):
        numbers = list(numbers_in(statement.text))
        stated = _stated(text, statement, numbers)
        if stated is None:
            continue
        following = next((n for n in numbers if n.start >= stated.end), None)
        hedged = following is not None and _hedged(statement.text, stated, following)
        return None if hedged else FinalAnswer(str(stated), stated=True)
    return _last(text)


def _last(text: str) -> FinalAnswer | None:
    """Return the number that is the whole text or its first paragraph, or else a guess."""
    body = text.rstrip()
    first, more, _ = body.partition("\n\n")
    if more and (whole := _whole_number(first)) is not None:
        return FinalAnswer(str(whole), stated=True)
    if body.endswith("?"):
        body = body[: body.rfind(last_sentence(body))]
    if more and (note := deque(_NOTE.finditer(body), maxlen=1)):
        body = body[: note[0].start()]
    last = deque(numbers_in(body), maxlen=2)
    if not last:
        body, last = text, deque(numbers_in(text), maxlen=2)
    if not last:
        return None
    if len(last) == 1 and _whole_number(body) is not None:
        return FinalAnswer(str(last[0]), stated=True)
    sentence = sentence_at(body, last[-1].start)
    # Most sentences with a number have only one.
    several = len(last) > 1 and last[-2].start >= body.rfind(sentence, 0, last[-1].end + WINDOW)
    guess = _guessed(sentence) if several else None
    return FinalAnswer(str(guess or last[-1]), stated=False)


def _whole_number(text: str) -> Number | None:
    """Return the number that is the whole text, apart from punctuation."""
    numbers = list(numbers_in(text)) if len(text) <= LONGEST_NUMBER else []
    if len(numbers) != 1:
        return None
    around = text[: numbers[0].start] + text[numbers[0].end :]
    return None if any(map(str.isalnum, around)) else numbers[0]


def _guessed(sentence: str) -> Number | None:
    """Return what the sentence concludes: its bold number, the result of its last equation, or the
    last number that is no circumstance and in no aside or reason.

    On the gold solutions of GSM8K's training questions, whose last line states the answer in many
    words, the last number of all (`flexible-extract` of the lm-evaluation-harness) is a different
    one three times as often.
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
    return _last_of_result(sentence, numbers)


def _last_of_result(sentence: str, numbers: list[Number]) -> Number:
    """Return the last number that is no circumstance and does not come from the question."""
    results = [n for n in numbers if not _is_circumstance(sentence, n)]
    if len(results) > 1:
        results[1:] = [n for n in results[1:] if not _is_known(sentence, results[0], n)]
    return (results or numbers)[-1]


def _is_known(sentence: str, first: Number, number: Number) -> bool:
    counts = _NOUN.match(sentence, number.end)
    return counts is not None and _KNOWN.search(sentence, first.end, number.start) is not None


def _is_circumstance(sentence: str, number: Number) -> bool:
    before = sentence[max(0, number.start - 40) : number.start]
    money = _CURRENCY.search(sentence, number.start, number.end)
    return money is None and _CIRCUMSTANCE.search(before) is not None


def _without_asides(text: str) -> str:
    """Return the text with blanks in place of what is in brackets, up to where it begins to give
    reasons; unchanged where no number would be left."""
    shorter = _ASIDE.sub(lambda match: " " * len(match[0]), text) if "(" in text else text
    if reason := _REASON.search(shorter):
        shorter = shorter[: reason.start()]
    if shorter == text:
        return text
    return shorter if next(numbers_in(shorter), None) is not None else text


def _result(span: str, numbers: list[Number]) -> Number | None:
    """Return the number after the last "=", if no arithmetic follows it."""
    equals = span.rfind("=")
    if equals < 0 or _ARITHMETIC.search(span, equals + 1):
        return None
    return next((n for n in numbers if n.start > equals), None)


def _bold(text: str) -> Number | None:
    """Return the last bold number."""
    bold = (list(numbers_in(match[1])) for match in _BOLD.finditer(text))
    return next((numbers[0] for numbers in reversed(list(bold)) if len(numbers) == 1), None)


def _hedged(text: str, stated: Number, following: Number) -> bool:
    """Return whether another number is named as an alternative ("18 or 20"). The same quantity in
    another unit is no alternative ("1.5 hours or 90 minutes")."""
    between = text[stated.end : following.start]
    if not _ANOTHER.fullmatch(between) or equal(str(stated), str(following)):
        return False
    unit, other = _UNIT.match(between), _UNIT.match(text, following.end)
    return unit is None or other is None or unit[1].lower() == other[1].lower()


def _stated(text: str, statement: Statement, numbers: list[Number]) -> Number | None:
    """Return the number that a statement names, if it names one."""
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
    return _bold(span) or _last_of_result(span, inside)


def _is_direct(span: str, number: Number) -> bool:
    match = _DIRECT.match(span)
    return match is not None and number.start <= match.end()
