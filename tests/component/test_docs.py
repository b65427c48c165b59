"""The documents agree with the repository: links and anchors resolve, the README's tree is the
real one, and the site builds without a warning and without anything from another host."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.component.cli.test_documented_commands import DOCUMENTS
from tests.helpers.paths import ROOT

_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)
_EXTERNAL = re.compile(r"<(?:link|script|img|iframe)\b[^>]*(?:src|href)=\"(?:https?:)?//[^\"]+")
_LONGEST_README = 200
"""Lines. What is longer belongs to docs/."""


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub and mkdocs make them."""
    headings = _HEADING.findall(_FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> Iterator[str]:
    """Relative links of a document whose file or anchor does not exist."""
    text = document.read_text()
    for link in _LINK.findall(_FENCE.sub("", text)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            yield link


@pytest.mark.parametrize("document", [*DOCUMENTS, Path("CHANGELOG.md")], ids=str)
def test_relative_links_and_anchors_resolve(document: Path) -> None:
    assert list(broken_links(ROOT / document)) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# The other's title\n")
    document = tmp_path / "page.md"
    document.write_text(
        "[a](other.md#the-others-title) [b](#here) [c](https://example.com/none)\n"
        "[d](none.md) [e](other.md#none) [f](#none)\n\n## Here\n\n```\n[g](in/code.md)\n```\n"
    )
    assert list(broken_links(document)) == ["none.md", "other.md#none", "#none"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= _LONGEST_README


def tree() -> list[str]:
    """The paths that the README's annotated tree names."""
    block = (ROOT / "README.md").read_text().partition("```\nsirt_ray/\n")[2].partition("```")[0]
    paths: list[str] = []
    parents = {0: ""}
    for line in ["sirt_ray/", *block.splitlines()]:
        depth = len(line) - len(line.lstrip())
        path = parents[depth] + line.split()[0]
        parents[depth + 2] = path
        paths.append(path)
    return paths


def test_the_tree_of_the_readme_is_the_real_one() -> None:
    named = tree()
    assert [path for path in named if not (ROOT / path).exists()] == []
    folders = {
        p.relative_to(ROOT) for p in (ROOT / "sirt_ray").iterdir() if (p / "__init__.py").exists()
    }
    assert {f"{folder}/" for folder in folders} <= set(named)


def test_the_site_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None or find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed, and builds the site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    external = [found for page in pages for found in _EXTERNAL.findall(page.read_text())]
    assert external == []
