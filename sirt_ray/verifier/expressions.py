r"""Mathematical final answers, compared after plain normalisation of their LaTeX.

`\dfrac12`, `\frac{1}{2}` and `0.5` are the same; units and delimiters do not count; the order
matters in `(1, 2)` but not in a bare list `1, 2`; an inequality of one variable is the interval
that it describes, so that `3 < x \le 4` and `(3,4]` are the same answer. Numbers are compared by
value.

There is no algebra here: whether `x+1` and `1+x` are the same is left to the caller's `equivalent`,
which is called only where this module finds them different (`answers.grade`).
"""

import itertools
import re
from collections import deque
from collections.abc import Sequence

from sirt_ray.verifier import numbers, numerals
from sirt_ray.verifier.statements import (
    WINDOW,
    FinalAnswer,
    Statement,
    find,
    is_last,
    last_sentence,
    readings,
)

_LONGEST_EXPRESSION = 400
_MOST_FORMULAS = 20
_LONGEST_JOINT = 40
"""In characters between two formulas of a list."""

# Reading: formulas in prose, and what a sentence states without LaTeX.

_INLINE_MATH = re.compile(
    r"(?<!\\)\$((?:[^$\n\\]|\\.){1,400})\$|\\\(([^\n]{1,400}?)\\\)|\\\[([^\n]{1,400}?)\\\]"
)
_PRICES = re.compile(r"\$[0-9][0-9.,]*\s[^\\$=]*[a-z],?\s\$")
"""The text between two amounts of dollars is no formula ("$5 and then $6")."""
_NAMED = re.compile(r"[a-zA-Z](?:\([a-z]\))?(?:=(?!=)|\\in(?![a-z]))")
_JOINT = re.compile(
    r"[\s$,;}]{0,8}(?:\\[)\]])?[\s,;]{0,4}(?:,|\b(?:and|or)\b)\s{0,3}(?:and\b|or\b)?[\s$]{0,4}"
    r"(?:\\[(\[])?\s?(?P<name>[a-zA-Z]\s?=\s?)?",
    re.IGNORECASE,
)
_WITH_UNIT = re.compile(r"(\\?\$?\s?-?[0-9][0-9.,/]{0,40})\s[a-z][a-z -]{0,60}", re.IGNORECASE)
_PROSE = re.compile(r"(?<![\\{A-Za-z])[A-Za-z]{3,}|[=$\n]|\\[(\[]|\\(?:boxed|fbox)")
_JOINING_WORD = re.compile(r"\b(?:and|sqrt|units?|degrees?|cm|feet|inches)\b")
_BOLD = re.compile(r"\*\*([^*\n]{1,60})\*\*")
_VERB = re.compile(r"(?:\b(?:is|are|equals|be)\b[:\s]|=)")
_COORDINATE = r"(?:[^()\[\]\n,A-Za-z=]|sqrt(?:\([^()\n]{1,20}\))?|\bpi\b|\binfinity\b){1,60}"
_TUPLE = re.compile(
    rf"(?<![A-Za-z0-9)])[(\[]{_COORDINATE}(?:,(?![0-9]{{3}}\b){_COORDINATE}){{1,3}}[)\]]"
    rf"(?:\s?[U\u222a]\s?[(\[]{_COORDINATE},{_COORDINATE}[)\]])?"
)
_CONCLUSION = re.compile(r"[\s*_]{0,4}(?:so|thus|therefore|hence)\b", re.IGNORECASE)
_WORD = re.compile(r"(?:(?:an?|the)\s)?[\"']?[A-Za-z-]{2,30}[\"']?")

# Normalisation.

_PLAIN = str.maketrans(
    {
        "\u2212": "-",
        "\u00b7": "*",
        "\u00d7": "*",
        "\u03c0": "\\pi ",
        "\u221e": "\\infty ",
        "\u222a": "\\cup ",
    }
)
_SIGN_OF_ROOT = re.compile(
    r"(?:\u221a|(?<![\\a-z])sqrt)\s?(?:\(([^()]{1,80})\)|([0-9]{1,20}|[a-z]))"
)
_MODULUS = re.compile(
    r"\\p?mod\s?(?:\{[^{}]{0,40}\}|[0-9]{1,20})|\(\\(?:b|text|mathrm)?mod[^()]{0,40}\)"
)
_ARTICLE = re.compile(r"(?<![A-Za-z\\])(?:[Aa]n?|[Tt]he)\s(?=[A-Za-z]{3})|\*\*")
_POINT = re.compile(r"\A[A-Z](?=\([^()]*,)")
_AT_LEAST = re.compile(r">=|\\geq?(?:slant)?(?![a-z])")
_AT_MOST = re.compile(r"<=|\\leq?(?:slant)?(?![a-z])")
_MIXED = re.compile(
    r"(?<![0-9a-z.}/])([0-9]{1,20})\s{1,3}([0-9]{1,20})/([0-9]{1,20})(?![0-9a-z./])"
)
_SPACING = re.compile(r"\\(?:left|right|big|Big|displaystyle|quad|[,;:! ])(?![A-Za-z])|~")
_DEGREES = re.compile(r"\^\s?\{?\s?\\circ\s?\}?|°|\\degree")
_UNITS = re.compile(r"\\(?:text|mbox|mathrm|textrm)\s?\{([^{}]{0,80})\}(\s?\^\s?\{?[23]\}?)?")
_AND = re.compile(r",?\s{1,3}(?:and|or)\s{1,3}")
_CUP = re.compile(r"(?<=[)\]])\s?U\s?(?=[(\[])")
_BASE = re.compile(r"_\{([0-9]{1,3})\}")
_SHORT_FRACTION = re.compile(r"\\frac\s?([0-9])\s?([0-9a-z])")
_SHORT_ROOT = re.compile(r"\\sqrt\s?([0-9a-z])")
_SLASH = re.compile(r"(?<![0-9a-z.}/])([0-9]{1,20})/([0-9]{1,20})(?![0-9a-z./])")
_LETTER_IN_BRACKETS = re.compile(r"\(([A-Z])\)")
_LETTER_AND_TEXT = re.compile(r"\(?([A-Z])[).][A-Za-z]{3,80}")
"""An answer to a question with options: "(C) Plane"."""
_SIMPLE = re.compile(
    r"-?(?:[0-9.]{1,40}|(?:[0-9]{1,20}(?=\\))?\\frac\{-?[0-9]{1,20}\}\{[0-9]{1,20}\})"
)

# Inequalities, without spaces and with ≤ and ≥ for LaTeX's names, as `normalise` makes them.

_VARIABLE = r"(?:[a-z]|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|varphi|omega))"
_BETWEEN = re.compile(rf"([^<>≤≥=]{{1,100}})([<>≤≥]){_VARIABLE}([<>≤≥])([^<>≤≥=]{{1,100}})")
_VARIABLE_THEN_BOUND = re.compile(rf"{_VARIABLE}([<>≤≥])([^<>≤≥=]{{1,100}})")
_BOUND_THEN_VARIABLE = re.compile(rf"([^<>≤≥=]{{1,100}})([<>≤≥]){_VARIABLE}")
_GREATER, _INCLUSIVE = ">≥", "≤≥"
_INFINITE = r"\infty"


def extract(text: str) -> FinalAnswer | None:
    """Return the final answer as it is written, or None: the last box (Hendrycks et al. 2021), else
    the last statement ("Final Answer: The final answer is $x$." of Lewkowycz et al. 2022), else, as
    a guess, the last formula, the last bold words or the last number. Boxes and formulas in a row
    ("$x = 1$ or $x = -2$") are one answer."""
    return next(filter(None, map(_extract, readings(text))), None)


def _extract(text: str) -> FinalAnswer | None:
    statements = find(text)
    boxes = [s for s in statements if s.mark == "boxed" and s.text.strip()]
    if boxes:
        ends = [text.find(s.text, s.end) + len(s.text) for s in boxes]
        starts = [text.rfind("\\", 0, s.end) for s in boxes]
        spans = list(zip(starts, ends, strict=True))
        return FinalAnswer(_rows(text, spans, [s.text.strip() for s in boxes])[-1], stated=True)
    for statement in reversed(statements):
        stated = _stated(text, statement)
        if stated:
            return FinalAnswer(stated, stated=True)
    if len(text) <= _LONGEST_EXPRESSION and text and not _PROSE.search(text):
        return FinalAnswer(text, stated=True)
    guess = _guessed(text)
    return FinalAnswer(guess, stated=False) if guess else numbers.extract(text)


def _stated(text: str, statement: Statement) -> str | None:
    if statement.mark == "label" and not is_last(text, statement):
        return None
    lead = len(statement.text) - len(statement.text.lstrip())
    formula = _INLINE_MATH.search(statement.text[: lead + len(statement.sentence) + WINDOW // 8])
    if formula is not None and formula.start() <= lead + len(statement.sentence):
        formulas = [formula, *_INLINE_MATH.finditer(statement.text, formula.end())]
        return _formula_rows(statement.text, formulas)[0]
    sentence = statement.sentence.strip(" .*")
    measured = _WITH_UNIT.fullmatch(sentence)
    return (measured[1] if measured else sentence) or None


def _guessed(text: str) -> str:
    """Return the last thing that the text seems to give as an answer: a formula, or in its last
    sentence bold words or what follows "is"; an empty text where there is none of these."""
    last = last_sentence(text)
    start = text.rfind(last)
    found = deque(_INLINE_MATH.finditer(text), maxlen=_MOST_FORMULAS)
    formulas = [m for m in found if _content(m) and not _PRICES.fullmatch(m[0])]
    bold = deque(_BOLD.finditer(text, start), maxlen=1)
    if bold and not (formulas and formulas[-1].start() > bold[0].start()):
        return bold[0][1].strip("$ .:")
    if formulas and formulas[-1].end() > start:
        return _formula_rows(text, formulas)[-1]
    if guess := _guessed_without_latex(last):
        return guess
    if not formulas:
        return ""
    number = numbers.extract(last)
    return number.answer if number else _formula_rows(text, formulas)[-1]


def _guessed_without_latex(sentence: str) -> str:
    """Return a tuple or an interval that is written without LaTeX, or what follows "is". That may
    be one word only if it is a name, or if the sentence begins with "so" or the like."""
    if tuples := deque(_TUPLE.finditer(sentence), maxlen=1):
        return tuples[0][0]
    verb = deque(_VERB.finditer(sentence), maxlen=1)
    guess = sentence[verb[0].end() :].strip() if verb else ""
    if not _PROSE.search(_JOINING_WORD.sub("", guess)):
        return guess
    concluded = guess[:1].isupper() or _CONCLUSION.match(sentence)
    return guess if concluded and _WORD.fullmatch(guess) else ""


def _formula_rows(text: str, formulas: Sequence[re.Match[str]]) -> list[str]:
    return _rows(text, [m.span() for m in formulas], [_content(m) for m in formulas])


def _content(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()


def _rows(text: str, spans: Sequence[tuple[int, int]], contents: Sequence[str]) -> list[str]:
    """Return the contents of the formulas at these spans, joined where the text only lists them."""
    rows: list[str] = []
    end, name = 0, ""
    for (start, next_end), content in zip(spans, contents, strict=True):
        name_match = _NAMED.match(content.replace(" ", ""))
        listed = rows and start - end <= _LONGEST_JOINT and _JOINT.fullmatch(text, end, start)
        if listed and (name_match is None or name_match[0] == name):
            rows[-1] += f", {_without_name(content)}"
        else:
            rows.append(content)
            name = name_match[0] if name_match else ""
        end = next_end
    return rows


def equal(first: str, second: str) -> bool:
    """Return whether two expressions are the same after normalisation."""
    one, other = normalise(first), normalise(second)
    if not one or not other:
        return False
    return (
        one == other
        or _same_number(one, other)
        or _same_parts(one, other)
        or (one.isalpha() and one.casefold() == other.casefold())
    )


def normalise(text: str) -> str:
    """Return an expression without spaces, units and delimiters, in one notation for each thing."""
    text = text.strip()[:_LONGEST_EXPRESSION].translate(_PLAIN)
    text = _SIGN_OF_ROOT.sub(_as_root, _MODULUS.sub("", text))
    text = _without_name(_POINT.sub("", _ARTICLE.sub("", text).strip("$ .\n").rstrip("\\")))
    text = _AT_MOST.sub("\u2264", _AT_LEAST.sub("\u2265", text))
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = text.replace("\\\\", ";").replace("\\{", "{").replace("\\}", "}")
    text = (
        text.replace("\\lt ", "<")
        .replace("\\gt ", ">")
        .replace("\\dfrac", "\\frac")
        .replace("\\tfrac", "\\frac")
        .replace("\u2212", "-")
    )
    text = text.replace("{,}", ",").replace("\\$", "").replace("$", "").replace("\\%", "%")
    text = _DEGREES.sub("", _SPACING.sub("", text))
    text = _UNITS.sub(_word_or_unit, text).replace("\\pi", "pi").replace("\\cdot", "*")
    text = _CUP.sub(r"\\cup ", _AND.sub(",", text))
    text = _BASE.sub(r"_\1", re.sub(r"\s+", "", text))
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", _SHORT_ROOT.sub(r"\\sqrt{\1}", text))
    text = _SLASH.sub(r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text) if "(" not in text else text
    if option := _LETTER_AND_TEXT.fullmatch(text):
        return option[1]
    text = _LETTER_IN_BRACKETS.sub(r"\1", text).rstrip("%.")
    return _intervals(text) or text


def _as_root(match: re.Match[str]) -> str:
    return f"\\sqrt{{{match[1] or match[2]}}}"


def _without_name(text: str) -> str:
    """Return `5` for `x = 5`; an equation between expressions stays as it is."""
    compact = text.replace(" ", "")
    named = _NAMED.match(compact)
    return compact[named.end() :] if named and compact.count("=") <= 1 else text


def _word_or_unit(match: re.Match[str]) -> str:
    """Return what replaces the text of a match of `_UNITS`: itself where it is the whole answer
    ("Evelyn"), its figures where it is a number's base, a comma for "and" and "or", and nothing for
    a unit."""
    if match.string[: match.start()].rstrip(" {").endswith("_"):
        return numerals.in_figures(match[1])
    is_whole = not (match.string[: match.start()] + match.string[match.end() :]).strip("() .")
    return match[1] if is_whole else "," if match[1].strip() in ("and", "or") else ""


def _same_number(one: str, other: str) -> bool:
    return all(map(_SIMPLE.fullmatch, (one, other))) and numerals.equal(one, other)


def _same_parts(one: str, other: str) -> bool:
    """Return whether the elements of two lists, tuples or intervals are the same one by one; those
    of bare lists, sets and unions in any order."""
    if "\\cup" in one and "\\cup" in other:
        unions = (sorted(text.split("\\cup")) for text in (one, other))
        return all(
            a == b or _same_parts(a, b) for a, b in itertools.zip_longest(*unions, fillvalue="")
        )
    brackets, parts = _parts(one)
    other_brackets, others = _parts(other)
    if brackets != other_brackets or len(parts) != len(others) or len(parts) < 2:
        return False
    if brackets in ("", "{}"):
        parts, others = sorted(parts), sorted(others)
    pairs = zip(parts, others, strict=True)
    return all(a == b or _same_number(a, b) for a, b in pairs)


def _parts(text: str) -> tuple[str, list[str]]:
    """Return the brackets around a list, and its elements."""
    if text[:1] in ("(", "[", "{") and text[-1:] in (")", "]", "}"):
        inner = _split(text[1:-1])
        if inner is not None:
            return text[0] + text[-1], inner
    return "", _split(text) or [text]


def _split(text: str) -> list[str] | None:
    """Split at the commas outside brackets; return None where a bracket closes that was not
    opened."""
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


def _intervals(text: str) -> str | None:
    """Return the interval of an inequality, or the union of the intervals of inequalities with
    commas (as for "or") between them; None where the text is no inequality of bounds and one
    variable.

    Example::

        _intervals("3<x≤4") == "(3,4]"
    """
    if not any(sign in text for sign in "<>≤≥"):
        return None
    found = [_interval(part) for part in text.split(",")]
    known = [interval for interval in found if interval is not None]
    return "\\cup".join(known) if len(known) == len(found) else None


def _interval(text: str) -> str | None:
    if match := _BETWEEN.fullmatch(text):
        low, first, second, high = match.groups()
        if (first in _GREATER) != (second in _GREATER):
            return None
        if first in _GREATER:
            low, first, second, high = high, second, first, low
        return f"{_opening(first)}{low},{high}{_closing(second)}"
    if match := _VARIABLE_THEN_BOUND.fullmatch(text):
        sign, bound = match.groups()
        greater = sign in _GREATER
    elif match := _BOUND_THEN_VARIABLE.fullmatch(text):
        bound, sign = match.groups()
        greater = sign not in _GREATER
    else:
        return None
    if greater:
        return f"{_opening(sign)}{bound},{_INFINITE})"
    return f"(-{_INFINITE},{bound}{_closing(sign)}"


def _opening(sign: str) -> str:
    return "[" if sign in _INCLUSIVE else "("


def _closing(sign: str) -> str:
    return "]" if sign in _INCLUSIVE else ")"
