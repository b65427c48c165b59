"""Mathematical final answers, compared after plain normalisation of their LaTeX.

It knows that `\\dfrac12`, `\\frac{1}{2}` and `0.5` are the same, that units and delimiters do not
count, and that the order matters in `(1, 2)` but not in a bare list `1, 2`. Numbers are compared by
value. It does no algebra: whether `x+1` and `1+x` are the same is asked of somebody who does, and
only where this says no (`answers.grade`).
"""

import re
from collections import deque

from sirt_ray.core import numbers
from sirt_ray.core.statements import WINDOW, Found, Statement, find, is_last, readings

LONGEST_EXPRESSION = 400

_INLINE_MATH = re.compile(
    r"(?<!\\)\$((?:[^$\n\\]|\\.){1,400})\$|\\\(([^\n]{1,400}?)\\\)|\\\[([^\n]{1,400}?)\\\]"
)
_SPACING = re.compile(r"\\(?:left|right|big|Big|displaystyle|quad|[,;:! ])(?![A-Za-z])|~")
_UNITS = re.compile(r"\\(?:text|mbox|mathrm|textrm)\s?\{([^{}]{0,80})\}(\s?\^\s?\{?[23]\}?)?")
_DEGREES = re.compile(r"\^\s?\{?\s?\\circ\s?\}?|°|\\degree")
_SHORT_FRACTION = re.compile(r"\\frac\s?([0-9])\s?([0-9a-z])")
_SHORT_ROOT = re.compile(r"\\sqrt\s?([0-9a-z])")
_SLASH = re.compile(r"(?<![0-9a-z.}/])([0-9]{1,20})/([0-9]{1,20})(?![0-9a-z./])")
_NAMED = re.compile(r"[a-zA-Z](?:\([a-z]\))?(?:=(?!=)|\\in(?![a-z]))")
_SIMPLE = re.compile(
    r"-?(?:[0-9.]{1,40}|(?:[0-9]{1,20}(?=\\))?\\frac\{-?[0-9]{1,20}\}\{[0-9]{1,20}\})"
)
_WITH_UNIT = re.compile(r"(\\?\$?\s?-?[0-9][0-9.,/]{0,40})\s[a-z][a-z -]{0,60}", re.IGNORECASE)
_PROSE = re.compile(r"(?<![\\{A-Za-z])[A-Za-z]{3,}|[=$\n]|\\[(\[]|\\(?:boxed|fbox)")
_LETTER_IN_BRACKETS = re.compile(r"\(([A-Z])\)")


def extract(text: str) -> Found | None:
    """The final answer as it is written, or None: the last box (Hendrycks et al. 2021), else the
    last statement ("Final Answer: The final answer is $x$." of Lewkowycz et al. 2022), else, as a
    guess, the last formula or the last number."""
    return next(filter(None, map(_extract, readings(text))), None)


def _extract(text: str) -> Found | None:
    statements = find(text)
    boxes = [s.text.strip() for s in statements if s.mark == "boxed" and s.text.strip()]
    if boxes:
        return Found(boxes[-1], stated=True)
    for statement in reversed(statements):
        stated = _stated(text, statement)
        if stated:
            return Found(stated, stated=True)
    if len(text) <= LONGEST_EXPRESSION and text and not _PROSE.search(text):
        return Found(text, stated=True)
    last = deque(_INLINE_MATH.finditer(text), maxlen=1)
    formula = _content(last[0]) if last else ""
    return Found(formula, stated=False) if formula else numbers.extract(text)


def _content(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()


def _stated(text: str, statement: Statement) -> str | None:
    if statement.mark == "label" and not is_last(text, statement):
        return None
    lead = len(statement.text) - len(statement.text.lstrip())
    formula = _INLINE_MATH.search(statement.text[: lead + len(statement.sentence) + WINDOW // 8])
    if formula is not None and formula.start() <= lead + len(statement.sentence):
        return _content(formula)
    sentence = statement.sentence.strip(" .*")
    measured = _WITH_UNIT.fullmatch(sentence)
    return (measured[1] if measured else sentence) or None


def equal(first: str, second: str) -> bool:
    """Whether two expressions are the same after normalisation."""
    one, other = normalise(first), normalise(second)
    if not one or not other:
        return False
    return one == other or _same_number(one, other) or _same_parts(one, other)


def normalise(text: str) -> str:
    text = _without_name(text.strip()[:LONGEST_EXPRESSION].strip("$ .\n"))
    text = text.replace("\\\\", ";").replace("\\{", "{").replace("\\}", "}")
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\u2212", "-")
    text = text.replace("{,}", ",").replace("\\$", "").replace("$", "").replace("\\%", "%")
    text = _DEGREES.sub("", _SPACING.sub("", text))
    text = _UNITS.sub(_word_or_unit, text).replace("\\pi", "pi").replace("\\cdot", "*")
    text = re.sub(r"\s+", "", text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", _SHORT_ROOT.sub(r"\\sqrt{\1}", text))
    text = _SLASH.sub(r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text) if "(" not in text else text
    return _LETTER_IN_BRACKETS.sub(r"\1", text).rstrip("%.")


def _without_name(text: str) -> str:
    """`x = 5` -> `5`; an equation between expressions stays."""
    compact = text.replace(" ", "")
    named = _NAMED.match(compact)
    return compact[named.end() :] if named and compact.count("=") <= 1 else text


def _word_or_unit(match: re.Match[str]) -> str:
    """Text is the answer where it stands alone ("Evelyn"), and a unit or a joint where not."""
    alone = not (match.string[: match.start()] + match.string[match.end() :]).strip("() .")
    return match[1] if alone else "," if match[1].strip() in ("and", "or") else ""


def _same_number(one: str, other: str) -> bool:
    return all(map(_SIMPLE.fullmatch, (one, other))) and numbers.equal(one, other)


def _same_parts(one: str, other: str) -> bool:
    """The elements of a list, a tuple or an interval, one by one; those of a bare list or of a set
    in any order."""
    brackets, parts = _parts(one)
    other_brackets, others = _parts(other)
    if brackets != other_brackets or len(parts) != len(others) or len(parts) < 2:
        return False
    if brackets in ("", "{}"):
        parts, others = sorted(parts), sorted(others)
    pairs = zip(parts, others, strict=True)
    return all(a == b or _same_number(a, b) for a, b in pairs)


def _parts(text: str) -> tuple[str, list[str]]:
    """The brackets around a list, and its elements."""
    if text[:1] in ("(", "[", "{") and text[-1:] in (")", "]", "}"):
        inner = _split(text[1:-1])
        if inner is not None:
            return text[0] + text[-1], inner
    return "", _split(text) or [text]


def _split(text: str) -> list[str] | None:
    """Split at the commas in no bracket; None where a bracket closes that was never opened."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
