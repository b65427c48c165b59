"""Numbers in text, compared by value: 18 == 18.0 == $18.00 == 36/2.

Final answers are read in this order:

1. the last statement that names a number ("#### 18", a box, "The answer is 18", "A: 18"), or the
   number that is the whole text;
2. as the last resort, a guess: the bold number of the last sentence, or the last number of all
   (`flexible-extract` of the lm-evaluation-harness), a question at the end not counted.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

from sirt_ray.core.statements import (
    Found,
    Statement,
    find,
    is_last,
    last_sentence,
    readings,
)

LONGEST_NUMBER = 80
"""Characters; what is longer is not an answer (and costs quadratic time to read)."""

LONGEST_POWER = 30
"""Of ten."""

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9]\.)"
    r"(?:(?<![)\]])(?P<sign>[-+]))?"
    r"(?:(?:US|USD)?\s?\\?[$€£¥₹]\s?)?"
    r"(?P<second_sign>-)?"
    r"(?:(?P<whole>(?>[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++))(?P<part>\.[0-9]++)?"
    r"|(?P<only_part>\.[0-9]++))"
    r"(?:[eE](?P<exponent>[+-]?[0-9]{1,3})(?![A-Za-z0-9]))?"
    r"(?:\s?(?:\\times|\u00d7|\*|x)\s?10\^\{?(?P<power>-?[0-9]{1,3})\}?)?"
    r"(?:\s(?P<top>[0-9]{1,20})/(?P<bottom>[0-9]{1,20})(?![0-9/])"
    r"|\s?/\s?(?P<divisor>[0-9]{1,20})(?![0-9/]|[.,][0-9]))?"
    r"(?P<percent>\s?\\?%|\s(?:percent|per\scent)\b)?"
    r"(?:\s(?P<scale>thousand|million|billion)\b)?"
    r"(?!(?:st|nd|rd|th)\b)"
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}

_LATEX_FRACTION = re.compile(
    r"\\[dt]?frac\s?(?:\{\s?(-?[0-9]{1,20})\s?\}\s?\{\s?([0-9]{1,20})\s?\}|([0-9])([0-9]))"
)
_NEGATED = re.compile(r"\bnot\s(?:equal\sto\s|\\?\$)?-?[0-9][0-9.,]{0,20}[0-9]?")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s?\{")
_DIRECT = re.compile(
    r"[\s*_:=$(\[{\\\"'~≈]{0,20}"
    r"(?:(?:about|approximately|around|roughly|exactly|simply|only|just|indeed|therefore|thus"
    r"|equal\sto|a\stotal\sof|[A-Za-z]\s?=)\s{0,3})?"
    r"[\s*_:=$(\[{\\\"'~≈]{0,20}",
    re.IGNORECASE,
)
_ARITHMETIC = re.compile(r"[=+\u00d7\u00f7]|(?<!\*)\*(?!\*)|\s[-/x]\s")
_ANOTHER = re.compile(r"[^.\n0-9]{0,30}\bor\s[^0-9]{0,3}\Z", re.IGNORECASE)
_UNIT = re.compile(r"[\s*_$}]{0,4}(?!or\b)([A-Za-z]+)")
_BOLD = re.compile(r"\*\*([^*\n]{1,60})\*\*")
_LIST = re.compile(r"[\s*_:]{0,10}1[.)]\s[^\n]{0,300}\n\s{0,8}[*_]{0,2}2[.)]\s")
_PLAIN = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\uff0d": "-",
        "\uff0c": ",",
        "\uff0e": ".",
        "\uff05": "%",
        "\u2019": "'",
        "\u00a0": " ",
        "\u2009": "",
        "\u202f": "",
        "\u00bc": " 1/4",
        "\u00bd": " 1/2",
        "\u00be": " 3/4",
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    }
)


@dataclass(frozen=True)
class Number:
    """A number where it stands. Of most only the place is asked: the value is read on demand."""

    _match: re.Match[str]
    start: int
    end: int

    @property
    def percent(self) -> bool:
        return self._match["percent"] is not None

    @cached_property
    def value(self) -> Fraction:
        return _value(self._match)

    def __str__(self) -> str:
        return f"{_decimal(self.value)}{'%' if self.percent else ''}"


def extract(text: str) -> Found | None:
    """The final answer as a plain number ("$1,234.50" -> "1234.5"), or None."""
    plain = map(_plain, readings(text))
    return next((_extract(reading) for reading in plain if _NUMBER.search(reading)), None)


@lru_cache(maxsize=4096)
def read(text: str) -> Number | None:
    """The number that a short text, such as a benchmark's gold answer, consists of."""
    numbers = list(_numbers(_plain(text.strip())[: 2 * LONGEST_NUMBER]))
    return numbers[0] if len(numbers) == 1 else None


def canonical(text: str) -> str | None:
    """A gold answer as `extract` would write it; None where it is no number."""
    number = read(text)
    return None if number is None else str(number)


def equal(first: str, second: str) -> bool:
    """Whether two texts are the same number. A percentage equals its figure and its share of one
    (18% is 18 and 0.18); a decimal equals a fraction that it rounds (0.3333 is 1/3)."""
    one, other = read(first), read(second)
    if one is None or other is None:
        return False
    if one.percent == other.percent:
        return _close(one.value, other.value)
    percentage, figure = (one, other) if one.percent else (other, one)
    return figure.value in (percentage.value, percentage.value / 100)


def _close(one: Fraction, other: Fraction) -> bool:
    if one == other:
        return True
    if _decimal_places(one) is not None and _decimal_places(other) is not None:
        return False
    return abs(one - other) * 10_000 <= max(abs(one), abs(other))


def _extract(text: str) -> Found | None:
    for statement in reversed(find(text)):
        numbers = list(_numbers(statement.text))
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
    last = deque(_numbers(said), maxlen=2)
    if not last:
        said, last = text, deque(_numbers(text), maxlen=2)
    if not last:
        return None
    if len(last) == 1 and _alone(said) is not None:
        return Found(str(last[0]), stated=True)
    return Found(str(_bold(last_sentence(said)) or last[-1]), stated=False)


def _alone(text: str) -> Number | None:
    """The number that a text is, apart from signs."""
    numbers = list(_numbers(text)) if len(text) <= LONGEST_NUMBER else []
    if len(numbers) != 1:
        return None
    around = text[: numbers[0].start] + text[numbers[0].end :]
    return None if any(map(str.isalnum, around)) else numbers[0]


def _bold(text: str) -> Number | None:
    """The last bold number."""
    bold = (list(_numbers(match[1])) for match in _BOLD.finditer(text))
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
    equals = span.rfind("=")
    after_equals = [n for n in inside if n.start > equals]
    is_result = equals >= 0 and after_equals and not _ARITHMETIC.search(span[equals + 1 :])
    result = after_equals[0] if is_result else None
    if statement.mark == "boxed":
        return result or (inside[0] if len(inside) == 1 else None)
    if statement.mark == "label" and not is_last(text, statement):
        first = inside[0]
        reasoning = _ARITHMETIC.search(span[first.end :])
        return first if _is_direct(span, first) and not reasoning else None
    if result or _is_direct(span, inside[0]):
        return result or inside[0]
    return _bold(span) or inside[-1]


def _is_direct(span: str, number: Number) -> bool:
    match = _DIRECT.match(span)
    return match is not None and number.start <= match.end()


def _numbers(text: str) -> Iterator[Number]:
    for match in _NUMBER.finditer(text):
        start, end = match.span()
        if end - start <= LONGEST_NUMBER and not _unreadable(match):
            yield Number(match, start, end)


def _unreadable(match: re.Match[str]) -> bool:
    """Whether it divides by zero, or would be longer than a number may be without its power."""
    below, power = match["bottom"] or match["divisor"], match["exponent"] or match["power"]
    if below is not None and int(below) == 0:
        return True
    return power is not None and abs(int(power)) > LONGEST_POWER


def _value(match: re.Match[str]) -> Fraction:
    value = Fraction((match["whole"] or "0").replace(",", "") + (match["part"] or ""))
    if match["only_part"]:
        value = Fraction("0" + match["only_part"])
    if match["exponent"] or match["power"]:
        value *= Fraction(10) ** (int(match["exponent"] or 0) + int(match["power"] or 0))
    if match["bottom"]:
        value += Fraction(int(match["top"]), int(match["bottom"]))
    if match["divisor"]:
        value /= int(match["divisor"])
    if match["scale"]:
        value *= _SCALES[match["scale"]]
    return -value if (match["sign"] == "-") != (match["second_sign"] == "-") else value


def _plain(text: str) -> str:
    """Without what only dresses numbers: wide digits, LaTeX fractions and spacing, denials."""
    text = text.translate(_PLAIN).replace("{,}", ",").replace("\\!", "").replace("\\,", "")
    text = _TEXT_COMMAND.sub(" {", text)
    return _NEGATED.sub(" ", _LATEX_FRACTION.sub(_as_slash, text))


def _as_slash(match: re.Match[str]) -> str:
    mixed = match.string[max(0, match.start() - 1) : match.start()].isdigit()
    top, bottom = match[1] or match[3], match[2] or match[4]
    return f"{' ' if mixed else ''}{top}/{bottom}"


def _decimal_places(value: Fraction) -> int | None:
    """Digits behind the point; None where they never end."""
    rest, places = value.denominator, 0
    for factor in (2, 5):
        count = 0
        while rest % factor == 0:
            rest //= factor
            count += 1
        places = max(places, count)
    return places if rest == 1 else None


def _decimal(value: Fraction) -> str:
    places = _decimal_places(value)
    if places is None:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    whole, part = digits[: len(digits) - places], digits[len(digits) - places :]
    return ("-" if value < 0 else "") + (f"{whole}.{part}" if part else whole)
