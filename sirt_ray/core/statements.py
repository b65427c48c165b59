"""Where a text names its final answer.

    "#### 18"            hash     GSM8K's mark
    "\\boxed{18}"         boxed    MATH's mark
    "The answer is 18."  is       a sentence
    "Answer: 18"         label    a heading; what follows may also be the reasoning

Model text is untrusted: every pattern has bounded repetition, every look at the text behind a mark
is a window of fixed size, and only the last marks are read. So the cost is linear in the length.
"""

import re
from collections import deque
from dataclasses import dataclass
from typing import Literal

WINDOW = 400
"""Characters that are read behind a mark: more than any final answer needs."""

MOST_MARKS = 50

Mark = Literal["hash", "boxed", "is", "label"]

_IS = re.compile(
    r"\banswer\b"
    r"(?:\s{1,3}(?:to|for|of|in|from)\s[^.,:;=?!\n]{1,60}?)?"
    r"(?:\s{0,3}\([^()\n]{0,40}\))?"
    r"[\s*_,]{0,4}"
    r"(?:(?:\b(?:therefore|thus|then|hence)\b)[\s,]{1,3})?"
    r"\b(?:is|was|are|equals|would\sbe|should\sbe|will\sbe|must\sbe)\b"
    r"|<answer>",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(?:\b(?:answer|ans)|(?:^|(?<=\n))[ \t*_>]{0,8}a)"
    r"(?:\s?\([^()\n]{0,40}\))?[*_]{0,3}\s?[:=]",
    re.IGNORECASE,
)
_HASH = re.compile(r"#{4}(?!#)")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"')\]*_$}]|$)|\n")
_NEXT_QUESTION = re.compile(r"\n[ \t]{0,8}(?:question|q)\s?[0-9]{0,3}\s?:", re.IGNORECASE)

_DRESS = " \t\r\n*_:$`"


@dataclass(frozen=True, slots=True)
class Statement:
    """A mark and the text behind it.

    Example::

        Statement("is", 12, "18. She is happy.")     # of "16 + 2 = 18. The answer is 18. She ..."
    """

    mark: Mark
    end: int
    """Where the mark ends in the text."""
    text: str
    """At most `WINDOW` characters; of a box, its whole content."""

    @property
    def sentence(self) -> str:
        return first_sentence(self.text)


def find(text: str) -> list[Statement]:
    """The last marks of the text, in its order."""
    found = [
        Statement(mark, match.end(), text[match.end() : match.end() + WINDOW])
        for mark, pattern in _PATTERNS
        for match in deque(pattern.finditer(text), MOST_MARKS)
    ]
    for match in deque(_BOX.finditer(text), MOST_MARKS):
        content = box_content(text, match.end())
        if content is not None:
            found.append(Statement("boxed", match.end(), content))
    return sorted(found, key=lambda statement: statement.end)


_PATTERNS: tuple[tuple[Mark, re.Pattern[str]], ...] = (
    ("hash", _HASH),
    ("is", _IS),
    ("label", _LABEL),
)


def box_content(text: str, start: int) -> str | None:
    """What stands in the braces that open at `start`; None where they do not close in time.
    `\\boxed 5` without braces holds the next word."""
    window = text[start : start + WINDOW]
    bare = window.lstrip()
    if not bare.startswith("{"):
        words = bare.split(maxsplit=1)
        return words[0].rstrip("$.,") if words else None
    depth = 0
    for position, character in enumerate(bare):
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return bare[1:position]
    return None


def first_sentence(text: str) -> str:
    """Up to the first end of a sentence or of a line, without the dress in front of it."""
    bare = text.lstrip(_DRESS)
    end = _SENTENCE_END.search(bare)
    return bare[: end.start()] if end else bare


def last_sentence(text: str) -> str:
    """The end of the text, from the last end of a sentence or of a line before it."""
    tail = text.rstrip()[-WINDOW:].rstrip(".!?*_ ")
    start = 0
    for match in _SENTENCE_END.finditer(tail):
        start = match.end()
    return tail[start:]


def is_last(text: str, statement: Statement) -> bool:
    """Whether nothing follows the statement's sentence."""
    bare = text[statement.end : statement.end + WINDOW].lstrip(_DRESS)
    rest = bare[len(statement.sentence) :]
    return len(text) - statement.end <= WINDOW and not rest.strip(".!?*_$ \n)\"'")


def readings(text: str) -> list[str]:
    """What to read, the better first: the text up to where the model begins to ask itself another
    question, as base models do, and the whole."""
    bare = text.strip()
    match = _NEXT_QUESTION.search(bare)
    return [bare[: match.start()], bare] if match else [bare]
