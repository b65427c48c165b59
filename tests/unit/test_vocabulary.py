"""The package's identifiers use the field's terms: none of these words, for which there is a better
one, is part of a name."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.helpers.paths import ROOT

RETIRED = {
    "request, sample, query, prompt": "ask asks asked asker asking",
    "log, report, print, message": "tell tells telling told hear hears heard say says said saying",
    "path, URI, log context": "place places here anywhere elsewhere",
    "status, outcome, result": "fate fates standing judged fell",
    "package, resources": "room rooms",
    "address": "door doors",
    "stale": "untrue",
    "dry run": "survey surveys",
    "cleanup, Serve apps": "belongings",
    "options": "how",
    "custom, user": "own",
    "fix": "mend mended",
    "started": "began begun",
    "capabilities, master weights": "abilities masters",
    "assign, subtract, infeasible": "seats less unmet beside",
    "rate limit, live report, monitor": "seldom keeper follower",
    "death of an actor, error": "bear bears met got",
    "without": "nobody alone",
    "arguments, settings": "given",
    "is in": "lies",
}
"""Terms to use instead -> retired words."""

WORDS = {word for words in RETIRED.values() for word in words.split()}


def names(tree: ast.AST) -> Iterator[str]:
    """Every identifier that a module defines or uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg is not None:
            yield node.arg
        elif isinstance(node, ast.alias):
            yield from (node.asname or node.name).split(".")


def words_of(name: str) -> set[str]:
    """Split at underscores and capitals: `RayTrainWorker` -> ray, train, worker."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


@pytest.mark.parametrize(
    "room",
    sorted(path.name for path in (ROOT / "sirt_ray").glob("[!_]*") if path.suffix != ".typed"),
)
def test_names_are_free_of_retired_words(room: str) -> None:
    path = ROOT / "sirt_ray" / room
    found = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))
        for name in sorted({file.stem, *names(ast.parse(file.read_text()))})
        if words_of(name) & WORDS
    ]
    assert found == [], RETIRED
