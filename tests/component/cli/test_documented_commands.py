"""What the documents tell people to type: each command of ours is one that its parser takes, names
files that are there, and the cheap ones are run."""

import argparse
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from sirt_ray.cli import completion, main
from tests.helpers import newcomer
from tests.helpers.paths import ROOT

_PLACES = {"jobs", "tests", "cluster", "sirt_ray", "examples"}


def _files() -> list[str]:
    found = [p for place in _PLACES for p in (ROOT / place).rglob("*.*")]
    return [str(path.relative_to(ROOT)) for path in found if path.suffix in (".py", ".yaml")]


DOCUMENTS = sorted(
    path.relative_to(ROOT)
    # A changelog tells of what was.
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("[!.]*/**/README.md"),
    )
    if "runs" not in path.parts
)
_BLOCK = re.compile(
    r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$|^(?P<indented>(?:    [^\n]*\n)+)", re.M | re.S
)
_TYPED = re.compile(
    r"\s*([A-Z_]+=\S* |\.venv/bin/)*(?P<command>(sirt|make|python -m|python examples/\S+)\b.*)"
)
_INLINE = re.compile(r"`((?:sirt|make|python -m sirt_ray[^\s`]*) [^`]+)`")
_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
FILES = [Path(name) for name in _files()]
_NOT_THERE = {"utils.py", "config.yaml"}
"""What we do not have, and what a run writes."""
_OF_THE_READER = re.compile(r"(^|/)mine\b|PATH|FILE|JOB\b|my_")
"""Files that stand for the reader's own."""


def commands(text: str) -> Iterator[str]:
    """Our commands in a document's code blocks and in backquotes, without comments."""
    for found in _BLOCK.finditer(text):
        block = found["indented"] or (found["text"] if found["kind"] in ("", "sh", "bash") else "")
        for line in block.replace("\\\n", " ").splitlines():
            if typed := _TYPED.match(line):
                yield shlex.join(split(typed["command"]))
    for found in _INLINE.finditer(text):
        yield shlex.join(split(found[1]))


def split(line: str) -> list[str]:
    """The words of a line's first command, without what becomes of its output."""
    words = shlex.shlex(line, posix=True, punctuation_chars=";|&>")
    words.whitespace_split = True
    return list(itertools.takewhile(lambda word: word[0] not in ";|&>", words))


def documented() -> list[tuple[str, str]]:
    return [
        (str(document), command)
        for document in DOCUMENTS
        for command in dict.fromkeys(commands((ROOT / document).read_text()))
    ]


def parse(parser: argparse.ArgumentParser, words: list[str]) -> None:
    try:
        parser.parse_args(words)
    except SystemExit as error:
        raise AssertionError(f"the parser refuses {shlex.join(words)}") from error


def understood(command: str) -> None:
    """Raise AssertionError where we would not take the command."""
    words = shlex.split(command)
    if words[0] == "make":
        named = [word for word in words[1:] if "=" not in word]
        assert set(named) <= _TARGETS, f"the Makefile has no {named}"
    elif words[0] == "sirt":
        if not {"...", "…"} & set(words) and len(words) > 2:
            parse(main._parser(), words[1:])
        else:
            assert words[1] in subcommands()
    elif words[:2] != ["python", "-m"]:
        assert (ROOT / words[1]).is_file(), words[1]
    elif words[2] == "sirt_ray.training" and len(words) > 3:
        parse(main._parser(), ["train", *words[3:]])
    elif words[2].startswith(("sirt_ray", "tests")):
        assert find_spec(words[2]) is not None, words[2]
    for word in words:
        if word.partition("/")[0] in _PLACES and not _OF_THE_READER.search(word):
            assert (ROOT / word).exists(), f"there is no {word}"


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in main._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return found.choices


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_documented_commands_are_understood(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused: list[str] = []
    for command in commands((ROOT / document).read_text()):
        try:
            understood(command)
        except AssertionError as error:
            refused.append(f"{command}: {error}; {capsys.readouterr().err[-200:]}")
    assert refused == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_documented_files_are_there(document: Path) -> None:
    named = set(re.findall(r"`([\w/]+\.(?:py|yaml))`", (ROOT / document).read_text()))
    ours = {name for name in named if not _OF_THE_READER.search(name)} - _NOT_THERE
    missing = [name for name in ours if not any(p.match(name) for p in FILES)]
    assert missing == []


def test_the_search_finds_them_and_a_wrong_one_is_refused() -> None:
    found = {command for document, command in documented() if _is_for_newcomers(document)}
    assert {
        "make quickstart",
        "sirt run jobs/quickstart.yaml",
        "python examples/sirt_in_one_file.py",
    } < found
    assert len(found) > 50
    for wrong in (
        "make quikstart",
        "sirt rum jobs/quickstart.yaml",
        "sirt run jobs/quickstart.yaml --seed 3",
        "sirt run jobs/quikstart.yaml",
        "python -m sirt_ray.quickstart.pretrian --out DIR",
    ):
        with pytest.raises(AssertionError):
            understood(wrong)


@pytest.mark.parametrize("name", list(subcommands()))
def test_help_shows_examples_that_work(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out.partition("examples:\n")[2]
    examples = list(commands("".join(f"    {line.strip()}\n" for line in shown.splitlines())))
    named = [command for command in examples if command.startswith(f"sirt {name} ")]
    assert len(named) >= 2
    for command in examples:
        understood(command)


def test_the_cheap_ones_are_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "quickstart" in listed and "test" in listed
    responses = tmp_path / "responses.jsonl"
    responses.write_text('{"response": "9 * 2 = 18. The answer is $18.", "reference": "18"}\n')
    assert main.main(["grade", "--benchmark", "gsm8k", str(responses)]) == 0
    told = capsys.readouterr().out.strip()
    assert told == '{"right": 1, "wrong": 0, "unparseable": 0, "accuracy": 1.0}'
    assert told in (ROOT / "docs/guide/export_and_serve.md").read_text()


def test_completion_offers_settings_that_exist() -> None:
    """Between data.benchmarks and the settings of a task is its name, which is the user's."""
    offered = set(completion.settings())
    assert {"data.benchmarks", "refine.lora.rank", "teacher.endpoint.url"} < offered
    assert not [name for name in offered if name.startswith("data.benchmarks.")]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_code(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "_ARGCOMPLETE" in code and "sirt" in code
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=code, text=True, check=True)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sirt run --allow", "--allow-code"),
        ("sirt run x.yaml --set refine.pairs.ma", "refine.pairs.max_per_question="),
    ],
)
def test_completion_answers_the_shell(typed: str, offered: str, tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    environment = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "sirt_ray"], env=environment, capture_output=True, check=False
    )
    assert offered in re.split(r"[\s\013]+", answer.read_text()), done.stderr


def _is_for_newcomers(document: str) -> bool:
    return document == "README.md" or document.startswith("docs/")


def test_every_command_of_readme_and_docs_is_run_or_named_with_a_reason() -> None:
    """`make test-newcomer` runs them."""
    shown = {command for document, command in documented() if _is_for_newcomers(document)}
    mentions = {command for command in shown if len(command.split()) == 2} - newcomer.commands()
    assert mentions <= {f"sirt {name}" for name in subcommands()}
    assert shown - mentions == newcomer.commands()
