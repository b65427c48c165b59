"""The numbers in a text: where they are, and their values: 18 == 18.0 == $18.00 == 36/2.

A number may be in digits, in LaTeX or in English words ("forty-seven", "two hundred and five").
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

LONGEST_NUMBER = 80
"""In characters. What is longer is not an answer (and costs quadratic time to read)."""
_LONGEST_POWER = 30
"""As an exponent of ten."""
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_^])(?<![0-9]\.)(?<!\^\{)"
    r"(?:(?<![)\]])(?P<sign>[-+]))?"
    r"(?:(?:US|USD)?\s?\\?[$€£¥₹]\s?)?"
    r"(?P<second_sign>-)?"
    r"(?:(?P<whole>(?>[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++))(?P<part>\.[0-9]++)?"
    r"|(?P<only_part>\.[0-9]++))"
    r"(?:[eE](?P<exponent>[+-]?[0-9]{1,3})(?![A-Za-z0-9]))?"
    r"(?:\s?(?:\\times|\u00d7|\*|x)\s?10\^\{?(?P<power>-?[0-9]{1,3})\}?)?"
    r"(?:\s(?P<top>[0-9]{1,20})/(?P<bottom>[0-9]{1,20})(?![0-9/])"
    r"|\s?/\s?(?P<divisor>[0-9]{1,20})(?![0-9/]|[.,][0-9]))?"
    r"(?P<kilo>[kK]\b)?"
    r"(?P<percent>\s?\\?%|\s(?:percent|per\scent)\b)?"
    r"(?:\s(?P<scale>thousand|million|billion)\b)?"
    r"(?!(?:st|nd|rd|th)\b)"
)
_CURRENCY = re.compile(r"[$€£¥₹]")
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}

# Other notations.

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
_CENTS = re.compile(r"([0-9])\sdollars?\sand\s([0-9]{1,2})\scents?\b")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s?\{")
_LATEX_FRACTION = re.compile(
    r"\\[dt]?frac\s?(?:\{\s?(-?[0-9]{1,20})\s?\}\s?\{\s?([0-9]{1,20})\s?\}|([0-9])([0-9]))"
)
_NEGATED = re.compile(r"not(?<!\wnot)\s(?:equal\sto\s|\\?\$)?-?[0-9][0-9.,]{0,20}[0-9]?")

# English words.

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {
    **{word: value for value, word in enumerate(_ONES)},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
}
_WORD = rf"(?:{'|'.join((*_VALUES, 'hundred', 'thousand'))})"
_RUN = re.compile(rf"\b{_WORD}(?:[\s-](?:and\s)?{_WORD}){{0,8}}\b", re.IGNORECASE)
_SEPARATOR = re.compile(r"[\s-]+(?:and\s)?")


class Number(NamedTuple):
    """A number and its span in the text. Most are only located: the value is computed on demand."""

    match: re.Match[str]
    start: int
    end: int

    @property
    def percent(self) -> bool:
        return self.match["percent"] is not None

    @property
    def value(self) -> Fraction:
        return _value(self.match)

    def __str__(self) -> str:
        if (figures := self.match[0]).isdecimal():
            return figures.lstrip("0") or "0"
        return f"{_decimal(self.value)}{'%' if self.percent else ''}"


def read(text: str) -> Number | None:
    """Return the only number of a short text, such as a benchmark's gold answer; None where there
    is none, or several."""
    numbers = list(numbers_in(plain(text.strip())[: 2 * LONGEST_NUMBER]))
    return numbers[0] if len(numbers) == 1 else None


def canonical(text: str) -> str | None:
    """Return a gold answer in the notation of `numbers.extract`; None where it is no number."""
    number = read(text)
    return None if number is None else str(number)


def equal(first: str, second: str) -> bool:
    """Return whether two texts are the same number. A percentage equals its figure and its share of
    one (18% is 18 and 0.18); a decimal equals a fraction that it rounds (0.3333 is 1/3)."""
    if first == second and first.isdecimal() and first.isascii() and len(first) <= LONGEST_NUMBER:
        return True
    one, other = _worth(first), _worth(second)
    if one is None or other is None:
        return False
    (value, percent), (other_value, other_percent) = one, other
    if percent == other_percent:
        return _close(value, other_value)
    percentage, figure = (value, other_value) if percent else (other_value, value)
    return figure in (percentage, percentage / 100)


@lru_cache(maxsize=4096)
def _worth(text: str) -> tuple[Fraction, bool] | None:
    """Return the value of a number, and whether it is a percentage."""
    number = read(text)
    return None if number is None else (number.value, number.percent)


def _close(one: Fraction, other: Fraction) -> bool:
    if one == other:
        return True
    if one.denominator == other.denominator == 1:
        return False
    if _count_decimals(one) is not None and _count_decimals(other) is not None:
        return False
    return abs(one - other) * 10_000 <= max(abs(one), abs(other))


def numbers_in(text: str) -> Iterator[Number]:
    """Yield the numbers of a text in plain notation, in order."""
    for match in _NUMBER.finditer(text):
        start, end = match.span()
        if end - start <= LONGEST_NUMBER and not _unreadable(match):
            yield Number(match, start, end)


def _unreadable(match: re.Match[str]) -> bool:
    """Return whether it divides by zero, or has too large an exponent to write it out."""
    below, power = match["bottom"] or match["divisor"], match["exponent"] or match["power"]
    if below is not None and int(below) == 0:
        return True
    return power is not None and abs(int(power)) > _LONGEST_POWER


def _value(match: re.Match[str]) -> Fraction:
    whole, part = match["whole"] or "", match["part"] or match["only_part"] or "."
    value = Fraction(int(whole.replace(",", "") + part[1:]), 10 ** (len(part) - 1))
    if match["exponent"] or match["power"]:
        value *= Fraction(10) ** (int(match["exponent"] or 0) + int(match["power"] or 0))
    if match["bottom"]:
        value += Fraction(int(match["top"]), int(match["bottom"]))
    if match["divisor"]:
        value /= int(match["divisor"])
    if match["kilo"] and _CURRENCY.search(match[0]):
        value *= 1000
    if match["scale"]:
        value *= _SCALES[match["scale"]]
    return -value if (match["sign"] == "-") != (match["second_sign"] == "-") else value


def _decimal(value: Fraction) -> str:
    decimals = _count_decimals(value)
    if decimals is None:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**decimals // value.denominator)
    digits = digits.rjust(decimals + 1, "0")
    whole, part = digits[: len(digits) - decimals], digits[len(digits) - decimals :]
    return ("-" if value < 0 else "") + (f"{whole}.{part}" if part else whole)


def _count_decimals(value: Fraction) -> int | None:
    """Return the number of digits after the decimal point; None where they do not end."""
    rest, decimals = value.denominator, 0
    for factor in (2, 5):
        count = 0
        while rest % factor == 0:
            rest //= factor
            count += 1
        decimals = max(decimals, count)
    return decimals if rest == 1 else None


def plain(text: str) -> str:
    """Return the text with its numbers in plain notation: ASCII digits, a slash for LaTeX
    fractions, no thin spaces, and without numbers that the text denies ("not 5")."""
    text = text.translate(_PLAIN).replace("{,}", ",").replace("\\!", "").replace("\\,", "")
    if " cent" in text:
        text = _CENTS.sub(lambda match: f"{match[1]}.{int(match[2]):02}", text)
    text = _TEXT_COMMAND.sub(" {", text)
    return _NEGATED.sub(" ", _LATEX_FRACTION.sub(_as_slash, text))


def _as_slash(match: re.Match[str]) -> str:
    mixed = match.string[max(0, match.start() - 1) : match.start()].isdigit()
    top, bottom = match[1] or match[3], match[2] or match[4]
    return f"{' ' if mixed else ''}{top}/{bottom}"


def in_figures(text: str) -> str:
    """Return the text with its spelled numbers in figures. "One" by itself is mostly a pronoun and
    stays, except after "is"."""
    return _RUN.sub(_in_figures, text)


def _in_figures(match: re.Match[str]) -> str:
    words = _SEPARATOR.split(match[0].lower())
    if words == ["one"] and not match.string[: match.start()].rstrip(" *:").endswith("is"):
        return match[0]
    total = part = 0
    for word in words:
        if word == "thousand":
            total, part = total + 1000 * max(part, 1), 0
        elif word == "hundred":
            part = 100 * max(part, 1)
        else:
            part += _VALUES[word]
    return str(total + part)
