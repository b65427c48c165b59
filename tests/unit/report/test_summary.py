"""What a run prints and leaves behind."""

import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from sirt_ray.core.scoring import score_of, scores_to_json
from sirt_ray.report.funnel import by_artifact, is_dropped
from sirt_ray.report.journal import RunJournal, summary
from sirt_ray.report.progress import LogProgress, TerminalProgress
from sirt_ray.report.tables import scores_tables
from sirt_ray.types import Scores


def shown(thing: object, width: int = 80) -> str:
    out = StringIO()
    Console(file=out, width=width).print(thing)
    return out.getvalue()


def scores(right: int) -> Scores:
    return {
        "far": {"cot": score_of(1, 4)},
        "near": {"cot": score_of(right, 4), "plain": score_of(0, 4)},
    }


def test_the_tables_put_in_domain_first_and_mark_what_was_rolled_back() -> None:
    stages = {"baseline": scores(1), "round_01": scores(2)}
    with_trigger, without = map(shown, scores_tables(stages, ["near"], ["round_01"]))
    assert with_trigger.index("near") < with_trigger.index("far")
    assert "50.0 ± 25.0" in with_trigger and "(rolled back)" in with_trigger
    assert "0.0 ± 0.0" in without and "-" in without


def test_tables_fit_in_a_terminal_whole() -> None:
    names = ["commonsense_qa", "openbookqa", "word_problems_ood", "social_i_qa", "multiarith"]
    stage: Scores = {name: {"cot": score_of(9, 9)} for name in names}
    tables = scores_tables({"baseline": stage, "round_10": stage}, names[:2], ["round_10"])
    text = "".join(map(shown, tables))
    assert len(tables) == 2 and "…" not in text
    assert text.count("100.0 ± 0.0") == 2 * len(names)


def test_a_summary_shows_every_reason_and_no_zero() -> None:
    text = summary(
        "round_01/pairs",
        {
            "questions": 9,
            "pairs": 4,
            "questions_paired": 3,
            "completions": 20,
            "completions_truncated": 2,
            "correctness_without_right": 0,
        },
    )
    assert text == "4 pairs from 3 of 9 questions (2 truncated completions)"


def test_the_journal_leaves_scores_and_events(tmp_path: Path) -> None:
    out = StringIO()
    journal = RunJournal(tmp_path, Console(file=out, width=200))
    journal.scores("baseline", scores(1))
    journal.scores("round_09", scores(1))
    journal.artifact("started", "demonstrations")
    sampling = {"retries": 2, "cost": 0.5, "usage": {"tokens_per_second": 1234}}
    counts = {"questions": 3, "kept": 2, "dropped_wrong": 1, "sampling": sampling}
    journal.artifact("finished", "demonstrations", counts=counts, seconds=1.5)
    journal.event("rolled_back", "because [it] fell", version="round_01")
    journal.finish({"baseline": scores(1)})
    assert json.loads((tmp_path / "scores.json").read_text()) == {
        "baseline": scores_to_json(scores(1))
    }
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == [
        *("started", "finished", "rolled_back"),
        "finished",
    ]
    assert "2 kept of 3 questions (1 dropped wrong); 1,234 tokens/s" in out.getvalue()
    assert "2 calls made again, cost 0.50" in out.getvalue()
    assert "because [it] fell" in out.getvalue()


def test_a_bar_shows_figures_and_a_log_stays_quiet_for_short_stages() -> None:
    terminal, log = StringIO(), StringIO()
    for progress in (
        TerminalProgress(Console(file=terminal, force_terminal=True, width=160)),
        LogProgress(Console(file=log)),
    ):
        with progress.stage("sampling", 10, "questions") as bar:
            bar.update(5, loss=0.25)
    assert "5/10" in terminal.getvalue() and "loss 0.25" in terminal.getvalue()
    assert log.getvalue() == ""


def test_questions_without_an_answer_are_counted_by_reason() -> None:
    sampling = {"dropped": {"endpoint_failed": 2, "refused_by_engine": 1}}
    counts = {"questions": 6, "kept": 3, "dropped_not_answered": 3, "sampling": sampling}
    assert summary("demonstrations", counts) == (
        "3 kept of 6 questions (3 dropped not answered);"
        " questions without an answer (2 endpoint failed, 1 refused by engine)"
    )
    evaluated = {"test": scores_to_json(scores(1))}
    text = summary("teacher/evaluation", {**evaluated, "sampling": sampling})
    assert text.endswith("; questions without an answer (2 endpoint failed, 1 refused by engine)")
    nothing = {**evaluated, "sampling": {"dropped": {}}}
    assert "without" not in summary("teacher/evaluation", nothing)
    evaluation = {"teacher/evaluation": {**evaluated, "sampling": sampling}}
    (figures,) = by_artifact(evaluation).values()
    assert figures == {"endpoint failed": 2, "refused by engine": 1}
    assert all(map(is_dropped, figures))


def test_rows_of_a_file_that_are_not_used_are_counted() -> None:
    file = {"rows": 9, "matched": 5, "unmatched_rows": 4, "duplicate_rows": 0, "right": 3}
    counts = {"questions": 6, "kept": 3, "dropped_wrong": 2, "dropped_not_answered": 1}
    assert summary("demonstrations", {**counts, "file": file}) == (
        "3 kept of 6 questions (2 dropped wrong, 1 dropped not answered);"
        " 5 of the file's 9 rows used (4 unmatched rows)"
    )


TRAINED = {
    "examples": 1200,
    "steps": 40,
    "planned_steps": 120,
    "chosen_step": 30,
    "validation": {"loss": 0.61, "accuracy": 0.875, "margin": 0.2, "kl": 0.1},
    "left_out": {"too_long": 2},
    "tokens": 90_000,
    "seconds": 60.0,
    "peak_memory_gib": 1.25,
    "warnings": [],
}


def test_a_students_summary_describes_its_training() -> None:
    stopped = {"stopped_early": "no lower loss", "warnings": [{"name": "length_drift"}]}
    assert summary("round_01/student", TRAINED) == (
        "1,200 examples, 40 steps, validation loss 0.6100 and accuracy 88% at step 30 (2 too long);"
        " 1,500 tokens/s, 1.2 GiB"
    )
    text = summary("round_01/student", TRAINED | stopped)
    assert "40 of 120 steps" in text and text.endswith("; warnings: length_drift")


def test_a_summary_of_an_earlier_versions_record_is_shorter() -> None:
    counts = {
        "examples": 9,
        "steps": 4,
        "chosen_step": 4,
        "left_out": {},
        "tokens": 1,
        "seconds": 1,
    }
    assert summary("round_00/student", counts) == "9 examples, 4 steps"
