"""Where a text states its final answer: marks, and the text after them.

    "#### 18"            hash     GSM8K's mark
    "\\boxed{18}"         boxed    MATH's mark
    "The answer is 18."  is       a sentence
    "Answer: 18"         label    a heading; what follows may also be the reasoning
    {"answer": "18"}     is       a field of JSON

GSM8K's mark is that of Cobbe et al. 2021, MATH's that of Hendrycks et al. 2021, "The answer is"
that of the prompts of Wei et al. 2022 and of Kojima et al. 2022; headings, `<answer>`,
JSON and `</think>` are how chat models format their answers, which Qwen and DeepSeek sometimes
give in Chinese.

Model text is untrusted: every pattern has bounded repetition, a mark is followed by a window of
fixed size, and only the last marks are read. So the cost is linear in the length.
"""

import re
from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple

WINDOW = 400
"""Characters that are read after a mark: more than any final answer needs."""

MOST_MARKS = 50
"""Only the last marks of a kind are read."""

Mark = Literal["hash", "boxed", "is", "label"]

# A pattern that begins with a few characters is searched for three times as fast as one that begins
# with `\b` or ignores case from the start.
_TAG = re.compile(r"<(?:final_)?answer>")
_FIELD = re.compile(
    r'"(?i:(?:final_?|correct_?)?(?:answer|choice|option)|choice|option)"\s{0,3}:\s{0,3}"?'
)
_CHINESE = re.compile(r"[\u7b54\u9009](?:\u6848|\u9879)(?:\u5e94\u8be5?)?[\u662f\u4e3a:\uff1a]")
"""Chinese for "the answer (the option) is"."""
_IS = re.compile(
    r"[Aa](?<!\w[Aa])(?i:nswer\b"
    r"(?:\s{1,3}(?:choice|option|here))?"
    r"(?:\s{1,3}(?:to|for|of|in|from|that|which|among|given)\s[^.,:;=?!\n]{1,60}?)?"
    r"(?:\s{0,3}\([^()\n]{0,40}\))?"
    r"[\s*_,]{0,4}"
    r"(?:(?:\b(?:therefore|thus|then|hence)\b)[\s,]{1,3})?"
    r"\b(?:is|was|are|equals|(?:would|should|will|must|might|may|could)\sbe"
    r"|(?:has|seems|appears|ought)\sto\sbe)\b)"
)
_COLON = r"(?:\s?\([^()\n]{0,40}\))?[*_]{0,3}(?:\s?[:=]|\s-\s)"
_LABEL = re.compile(r"[Aa](?<!\w[Aa])(?i:ns(?:wer)?)" + _COLON)
_CHOICE_LABEL = re.compile(
    r"[BbCcFfMmRr](?<!\w[A-Za-z])(?i:est|orrect|inal|y|ight)\s(?i:option|choice)" + _COLON
)
_LINE_LABEL = re.compile(
    r"^[ \t#*_>]{0,8}(?:a[*_]{0,3}\s?[:=]"
    r"|(?:the\s)?(?:final\s|correct\s)?answer[ \t*_]{0,8}\n)",
    re.IGNORECASE | re.MULTILINE,
)
_HASH = re.compile(r"####(?!#)")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_PATTERNS: tuple[tuple[Mark, str, re.Pattern[str]], ...] = (
    ("hash", "####", _HASH),
    ("is", "nswer", _IS),
    ("is", "nswer>", _TAG),
    ("is", '"', _FIELD),
    ("is", "\u7b54\u6848", _CHINESE),
    ("is", "\u9009\u9879", _CHINESE),
    ("label", "ans", _LABEL),
    ("label", "option", _CHOICE_LABEL),
    ("label", "choice", _CHOICE_LABEL),
    ("label", "a", _LINE_LABEL),
)
"""(mark, sign, pattern): a pattern is searched for only if the text in lower case has its sign."""
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"')\]*_$}]|$)|\n")
_NEXT_QUESTION = re.compile(
    r"\n[ \t#*>]{0,8}(?:(?:next\s|new\s|follow-up\s)?(?:question|q|problem|exercise)\s?[0-9]{0,3}"
    r"|human|user|instruction)\s?[*_]{0,3}:"
    r"|<\|(?:im_start|im_end|eot_id|endoftext|end_of_text|end)\|>|</s>|\[INST\]",
    re.IGNORECASE,
)
_WOULD = re.compile(r"(?:would|might|could)\sbe\Z")
_IF = re.compile(r"\bif\b", re.IGNORECASE)
_THINK_START, _THINK_END = "<think>", "</think>"

_MARKUP = " \t\r\n*_:$`"


class FinalAnswer(NamedTuple):
    """A final answer. `stated`: whether the text marks it as its answer; if not, it is a guess: the
    last number, formula or option that the text mentions."""

    answer: str
    stated: bool


@dataclass(frozen=True, slots=True)
class Statement:
    """A mark and the text after it.

    Example::

        Statement("is", 12, "18. She is happy.")     # of "16 + 2 = 18. The answer is 18. She ..."
    """

    mark: Mark
    end: int
    """The position in the text where the mark ends."""
    text: str
    """At most `WINDOW` characters; for a box, its whole content."""

    @property
    def sentence(self) -> str:
        return first_sentence(self.text)


def find(text: str) -> list[Statement]:
    """Return the last marks of the text, in its order."""
    small = text.lower()
    found = [
        Statement(mark, match.end(), text[match.end() : match.end() + WINDOW])
        for mark, sign, pattern in _PATTERNS
        if sign in small
        for match in deque(pattern.finditer(text), MOST_MARKS)
    ]
    for match in deque(_BOX.finditer(text), MOST_MARKS):
        content = box_content(text, match.end())
        if content is not None:
            found.append(Statement("boxed", match.end(), content))
    found.sort(key=lambda statement: statement.end)
    return [s for s in found if not _is_hypothetical(text, s)] or found


def _is_hypothetical(text: str, statement: Statement) -> bool:
    """Return whether the sentence of a statement is conditional: what the answer would be if ..."""
    if statement.mark != "is" or not _WOULD.search(text, statement.end - 12, statement.end):
        return False
    sentence = last_sentence(text[max(0, statement.end - WINDOW) : statement.end])
    return _IF.search(sentence) is not None


def box_content(text: str, start: int) -> str | None:
    """Return what is in the braces that open at `start`; None where they do not close in the
    window. `\\boxed 5` without braces contains the next word."""
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
    """Return the text up to the first end of a sentence or of a line, without leading markup."""
    bare = text.lstrip(_MARKUP)
    end = _SENTENCE_END.search(bare)
    return bare[: end.start()] if end else bare


def last_sentence(text: str) -> str:
    """Return the end of the text, from the last end of a sentence or of a line before it."""
    tail = text.rstrip()[-WINDOW:].rstrip(".!?*_ ")
    start = 0
    for match in _SENTENCE_END.finditer(tail):
        start = match.end()
    return tail[start:]


def sentence_at(text: str, position: int) -> str:
    """Return the sentence that contains this position."""
    end = _SENTENCE_END.search(text, position)
    return last_sentence(text[max(0, position - WINDOW) : end.start() if end else len(text)])


def is_last(text: str, statement: Statement) -> bool:
    """Return whether nothing follows the statement's sentence."""
    bare = text[statement.end : statement.end + WINDOW].lstrip(_MARKUP)
    rest = bare[len(statement.sentence) :]
    return len(text) - statement.end <= WINDOW and not rest.strip(".!?*_$ \n)\"'")


def is_cut_off(text: str) -> bool:
    """Return whether the text ends within the model's thinking: what it mentions last is no
    answer."""
    return _THINK_START in text and _THINK_END not in text


def readings(text: str) -> list[str]:
    """Return the parts of the text to read, the better one first: what follows the model's
    thinking, up to where it continues with another question, as base models do; and the same to the
    end."""
    bare = text[text.rfind(_THINK_END) + len(_THINK_END) :].strip() if _THINK_END in text else ""
    bare = bare or text.strip()
    match = _NEXT_QUESTION.search(bare)
    return [bare[: match.start()], bare] if match else [bare]
