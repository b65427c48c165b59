"""What a text takes back: options that it rules out, and what it said before correcting itself."""

import re
from collections import deque

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


def without_denied(text: str) -> str:
    """The text without the letters of options that it denies ("not A", "B is wrong because", "we
    can rule out C and D")."""
    if any(word in text for word in _DENYING):
        text = _DENIED.sub(" not ", text)
    return _NEGATED.sub(" not ", text)


def corrected(text: str) -> str:
    """What follows the last place where the text corrects itself ("Wait, that is not right");
    empty where it nowhere does."""
    last = deque(_RETRACTED.finditer(text), maxlen=1)
    return text[last[0].end() :] if last else ""
