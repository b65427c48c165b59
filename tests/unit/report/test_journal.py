"""Log lines for machines, and the journal that writes them."""

import json
import logging
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sirt_ray.logs import (
    FORMAT_VARIABLE,
    JsonFormatter,
    LogContext,
    at_artifact,
    attached_handler,
    bind_context,
    current_context,
    in_run,
    log_event,
)
from sirt_ray.report.journal import LOG_FILE, RunJournal, run_console
from sirt_ray.report.progress import LogProgress


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_place_is_of_the_block_and_of_no_other() -> None:
    with in_run("mine"):
        with at_artifact("round_02/pairs"):
            assert current_context() == LogContext("mine", "round_02", "pairs")
        with at_artifact("questions"):
            assert current_context() == LogContext("mine", "", "questions")
        with bind_context(LogContext("other")):
            assert current_context() == LogContext("other")
        assert current_context() == LogContext("mine")
    assert current_context() == LogContext()


def test_what_a_lower_room_tells_is_in_the_log_with_its_place(tmp_path: Path) -> None:
    out = StringIO()
    journal = RunJournal(tmp_path, Console(file=out, width=200))
    with attached_handler(journal), in_run("mine"), at_artifact("round_01/samples"):
        log_event(logging.INFO, "half of it", done=5, total=10)
        log_event(logging.WARNING, 'waiting for "godot"\nsince 40 s', "waiting", seconds=40)
    log_event(logging.WARNING, "nobody listens any more")
    half, wait = lines(tmp_path / LOG_FILE)
    place = {"run": "mine", "round": "round_01", "stage": "samples"}
    assert half.items() >= {"level": "INFO", "message": "half of it", **place}.items()
    assert half["fields"] == {"done": 5, "total": 10}
    assert wait.items() >= {"level": "WARNING", "event": "waiting", **place}.items()
    assert wait["message"] == 'waiting for "godot"\nsince 40 s'
    (event,) = lines(tmp_path / "events.jsonl")
    assert (event["event"], event["seconds"]) == ("waiting", 40)
    assert "half of it" not in out.getvalue()
    assert 'waiting for "godot"' in out.getvalue()


def test_how_far_a_stage_is_goes_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sirt_ray.report.progress._LOG_EVERY_SECONDS", 0.0)
    nobody = Console(quiet=True)
    stage = LogProgress(nobody).stage("round_01/samples", 10, "questions")
    with attached_handler(RunJournal(tmp_path, nobody)), stage as bar:
        bar.update(4, loss=0.5)
    (line,) = lines(tmp_path / LOG_FILE)
    assert line["message"] == "round_01/samples: 4/10 questions"
    told = {"done": 4, "total": 10, "unit": "questions", "figures": {"loss": 0.5}}
    assert line["fields"] == told


def test_the_journals_own_events_are_there_once(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path, Console(quiet=True))
    with attached_handler(journal), in_run("mine"):
        journal.artifact("started", "round_01/pairs")
        journal.event("rolled_back", "it fell", version="round_01")
        journal.stopped(KeyboardInterrupt())
    kinds = ["started", "rolled_back", "stopped"]
    assert [line["event"] for line in lines(tmp_path / "events.jsonl")] == kinds
    started, _, stopped = lines(tmp_path / LOG_FILE)
    assert (started["run"], started["round"], started["stage"]) == ("mine", "round_01", "pairs")
    assert stopped["level"] == "ERROR" and stopped["message"] == "it was interrupted"


def test_standard_output_can_be_json_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "json")
    console = run_console()
    journal = RunJournal(tmp_path, console)
    journal.event("rolled_back", "it fell")
    console.print("The refined student is here")
    shown = capsys.readouterr().out
    assert [json.loads(line) for line in shown.splitlines()] == lines(tmp_path / LOG_FILE)


@pytest.mark.parametrize("secret", ["sk-very-secret", 'with "quotes" \\ in it'])
def test_a_secret_of_the_environment_is_in_no_line(
    monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("SOME_API_KEY", secret)
    monkeypatch.setenv("SHORT_TOKEN", "a")
    monkeypatch.setenv("HARMLESS", "an innocent word")
    text = f"refused {secret}: an innocent word"
    record = logging.LogRecord("x", logging.ERROR, "", 0, text, (), None)
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "refused ***: an innocent word"
