"""Numbers in English words: "forty-seven", "two hundred and five"."""

import re

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


def in_figures(text: str) -> str:
    """The text with its spelled numbers in figures. "One" alone is mostly a pronoun and stays,
    except behind "is"."""
    return _RUN.sub(_figure, text)


def _figure(match: re.Match[str]) -> str:
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
