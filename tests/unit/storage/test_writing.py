"""Files are written through no link, and nothing but `storage/writing.py` opens one to write."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sirt_ray.artifacts.locks import is_locked, locked
from sirt_ray.errors import ArtifactError
from sirt_ray.storage.writing import append, opened_to_lock, replacing, write
from tests.helpers.paths import ROOT


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user that is in no run folder."""
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_a_link_is_replaced_and_not_followed(folder: Path, victim: Path) -> None:
    (folder / "report.html").symlink_to(victim)
    write(folder / "report.html", "a page")
    assert (folder / "report.html").read_text() == "a page"
    assert not (folder / "report.html").is_symlink() and victim.read_text() == "precious"


def test_a_link_with_a_likely_name_changes_nothing(folder: Path, victim: Path) -> None:
    (folder / ".report.html.partial").symlink_to(victim)
    write(folder / "report.html", "a page")
    assert victim.read_text() == "precious"


def test_what_is_appended_to_or_locked_may_be_no_link(folder: Path, victim: Path) -> None:
    for name in ("events.jsonl", ".lock"):
        (folder / name).symlink_to(victim)
    with pytest.raises(ArtifactError, match=r"events.jsonl is a symbolic link to .*victim"):
        append(folder / "events.jsonl", "{}\n")
    with pytest.raises(ArtifactError, match="symbolic link"), locked(folder):
        pass
    with pytest.raises(ArtifactError, match="symbolic link"):
        is_locked(folder)
    assert victim.read_text() == "precious"


def test_a_pipe_does_not_hang_who_appends_or_locks(folder: Path) -> None:
    os.mkfifo(folder / "events.jsonl")
    with pytest.raises(OSError, match=r"events.jsonl"):
        append(folder / "events.jsonl", "{}\n")
    os.mkfifo(folder / ".lock")
    with opened_to_lock(folder / ".lock", create=False):
        pass


def test_after_an_error_the_file_before_is_there_and_nothing_else(folder: Path) -> None:
    write(folder / "scores.json", "{}")
    with pytest.raises(ZeroDivisionError):
        half_written(folder / "scores.json")
    assert [path.name for path in folder.iterdir()] == ["scores.json"]
    assert (folder / "scores.json").read_text() == "{}"


def half_written(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError


def test_permissions_are_those_of_other_files(folder: Path) -> None:
    (folder / "usual").write_text("")
    write(folder / "ours", "")
    append(folder / "log", "")
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1


ALLOWED = {
    "storage/writing.py",
    "storage/atomic.py",  # Fills what `replacing` gives, and writes to devices.
    "on_ray/cluster.py",  # Ray's and the libraries' own text, from descriptor 2.
}


MODES = {f"{kind}{binary}{plus}" for kind in "wax" for binary in ("", "b") for plus in ("", "+")}
MODES |= {"r+", "r+b", "rb+"}


def test_nothing_else_opens_a_file_to_write() -> None:
    package = ROOT / "sirt_ray"
    found = {
        f"{name}:{call.lineno}"
        for path in sorted(package.rglob("*.py"))
        if (name := path.relative_to(package).as_posix()) not in ALLOWED
        and not name.startswith("quickstart/")  # Makes models in a folder of the user's choice.
        for call in written(ast.parse(path.read_text()))
    }
    assert found == set()


def written(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that open a file to write."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = {str(value.value) for value in values if isinstance(value, ast.Constant)}
        opens = name in ("open", "fdopen") and not modes.isdisjoint(MODES)
        if opens or name in ("write_text", "write_bytes"):
            yield node
