"""What the page of a run is made of, with numbers by hand."""

import json
import math
from pathlib import Path

import pytest

from sirt_ray.artifacts import parquet
from sirt_ray.report.journal import json_lines
from sirt_ray.report.page import examples
from sirt_ray.report.page.curves import MAX_POINTS, read_training
from sirt_ray.report.page.effort import Span, duration, efforts, large, timeline
from sirt_ray.report.page.examples import read_examples
from sirt_ray.report.page.pairs import read_pairs
from sirt_ray.report.page.render import cut, showable
from sirt_ray.report.records import read_run
from sirt_ray.types import PreferencePair
from tests.helpers.fakes import graded
from tests.helpers.written_runs import WrittenStages, answer, write_run

TESTS = {
    "teacher": {"gsm8k": "1111", "multiarith": "1111"},
    "baseline": {"gsm8k": "0000", "multiarith": "0000"},
    "round_00": {"gsm8k": "1100", "multiarith": "0000"},
    "round_01": {"gsm8k": "1010", "multiarith": "0000"},
}


def test_lines_that_are_being_written_are_left_for_later(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    assert json_lines(file).rows == ()
    file.write_bytes(b'{"step": 1}\nno json\n[2]\n\xff\n{"step": 2}\n{"st')
    found = json_lines(file)
    assert [row["step"] for row in found.rows] == [1, 2] and found.broken == 3
    with file.open("a") as more:
        more.write('ep": 3}\n')
    assert json_lines(file, found.end).rows == ({"step": 3},)


def test_curves_are_thinned_to_means_and_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    file, steps = tmp_path / "metrics.jsonl", 2 * MAX_POINTS
    lines = [
        {"step": step, "total_steps": 999, "loss": float(step), "margin": math.nan, "mfu": 0.25}
        for step in range(1, steps + 1)
    ]
    lines[-1]["validation_loss"] = 7.0
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = read_training(file, "round_01/student")
    assert found is not None
    assert (found.step, found.total_steps, found.mfu, found.broken) == (steps, 999, 0.25, 0)
    assert set(found.curves) == {"loss", "validation_loss"}
    loss = found.curves["loss"]
    # Two steps to a point; its running mean is over seven points on each side of it.
    assert len(loss.values) == MAX_POINTS and loss.steps[:2] == (1.5, 3.5)
    assert loss.values[0] == 1.5 and loss.smoothed[10] == loss.values[10] == 21.5
    assert loss.smoothed[0] == pytest.approx(1.5 + 7)
    assert found.curves["validation_loss"].steps == (steps,)
    assert read_training(tmp_path / "nothing", "round_00/student") is None


def event(second: int, kind: str, artifact: str | None = None) -> dict[str, str]:
    found = {"time": f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}Z", "event": kind}
    return found if artifact is None else found | {"artifact": artifact}


def test_the_timeline_has_no_time_between_a_stop_and_the_next_start() -> None:
    found = timeline(
        [
            event(0, "started", "questions"),
            event(10, "finished", "questions"),
            event(10, "started", "demonstrations"),
            event(30, "waiting"),  # and then it was killed
            event(600, "reused", "questions"),
            event(601, "started", "demonstrations"),
            event(611, "finished", "demonstrations"),
            event(611, "started", "round_00/student"),
            event(620, "stopped"),
            event(900, "reused", "questions"),
            event(900, "started", "round_00/student"),
            {"time": "no time", "event": "finished", "artifact": "round_00/student"},
            event(905, "waiting"),
        ]
    )
    assert found.spans == (
        Span("questions", "other", 0, 10, "finished"),
        Span("demonstrations", "sampling", 10, 30, "stopped"),
        Span("demonstrations", "sampling", 31, 41, "finished"),
        Span("round_00/student", "training", 41, 50, "stopped"),
        Span("round_00/student", "training", 50, 55, "running"),
    )
    assert found.starts == (30, 50) and found.seconds == 55
    assert timeline([]).spans == () and timeline([event(0, "reused", "questions")]).starts == ()


def test_efforts_are_read_from_the_records() -> None:
    usage = {
        **{"seconds": 10.0, "replica_seconds": 20.0, "gpu_seconds": 7200.0},
        **{"tokens_per_second": 50, "prefix_hit_share": 0.25},
    }
    sampled = {"completion_tokens": 500, "usage": usage}
    counts = {
        "questions": {},
        "baseline/evaluation": {"sampling": sampled},
        "round_01/samples": {**sampled, "usage": {}},
        "round_01/student": {"tokens": 900, "seconds": 30.0, "peak_memory_gib": 1.0},
    }
    seconds = dict.fromkeys(counts, 60.0)
    questions, evaluation, samples, student = efforts(counts, seconds, {"round_01/student": 0.4}, 4)
    assert (questions.tokens, questions.gpu_hours) == (None, 0.0)
    assert (evaluation.tokens_per_second, evaluation.gpu_hours) == (50, 2.0)
    assert evaluation.utilisation == "2.0 engines, 25% of prompts from cache"
    # Records of earlier versions do not say.
    assert (samples.tokens, samples.tokens_per_second, samples.gpu_hours) == (500, None, None)
    assert student.tokens_per_second == 30.0 and student.gpu_hours == pytest.approx(4 * 30 / 3600)
    assert student.utilisation == "40% MFU, 1.0 GiB at peak"


def test_pairs_are_counted_by_rule_and_their_sides_measured(tmp_path: Path) -> None:
    def pair(rule: str, chosen: int, rejected: int | None) -> PreferencePair:
        def side(length: int) -> tuple[int, ...]:
            return tuple(range(length))

        return PreferencePair(
            **{"question_id": "gsm8k/train/1", "benchmark": "gsm8k", "rule": rule},
            **{"prompt": "?", "prompt_ids": (1,), "chosen": graded(ids=side(chosen))},
            rejected=None if rejected is None else graded(ids=side(rejected), verdict="wrong"),
        )

    pairs = [pair("correctness", 10, 12), pair("correctness", 11, 12), pair("dpo_cot", 12, None)]
    parquet.write(tmp_path / "pairs.parquet", map(parquet.to_row, pairs), parquet.PAIR)
    found = read_pairs(tmp_path, "round_01")
    assert found.rules == {"correctness": 2, "dpo_cot": 1} and found.pairs == 3
    assert found.unit == "tokens" and found.edges == (10, 11, 12, 13)
    assert found.sides["chosen"].median == 11 and found.sides["rejected"].median == 12
    assert found.sides["chosen"].shares == pytest.approx((100 / 3, 100 / 3, 100 / 3))
    assert found.sides["rejected"].shares == (0, 0, 100)
    of_endpoint = [pair("correctness", 0, 0)]
    parquet.write(tmp_path / "pairs.parquet", map(parquet.to_row, of_endpoint), parquet.PAIR)
    assert read_pairs(tmp_path, "round_01").unit == "characters"


def test_examples_show_which_answers_flipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(write_run(tmp_path / "mine", WrittenStages(TESTS)))
    found = read_examples(run)
    assert found.questions == {"test": 8, "training": 0} and found.number("test") == 8
    assert (found.before["test"], found.after["test"]) == ("round_00", "round_01")
    of_gsm8k = {example.id: example for example in found.shown if example.benchmark == "gsm8k"}
    changes = [of_gsm8k[f"gsm8k/test/{row}"].change for row in range(4)]
    assert changes == ["stayed right", "became wrong", "became right", "stayed wrong"]
    shown = of_gsm8k["gsm8k/test/1"].answers
    assert [answer.source for answer in shown] == ["teacher", "baseline", "round_00", "round_01"]
    assert [answer.verdict for answer in shown] == ["right", "wrong", "right", "wrong"]

    monkeypatch.setitem(examples.MAX_QUESTIONS, "test", 4)
    drawn = read_examples(run)
    assert [example.benchmark for example in drawn.shown] == 2 * ["multiarith"] + 2 * ["gsm8k"]
    assert read_examples(run) == drawn
    each = drawn.shown[0].characters
    monkeypatch.setattr(examples, "MAX_TOTAL_CHARACTERS", 2 * each + 10)
    kept = read_examples(run)
    assert {example.benchmark for example in kept.shown} == {"multiarith", "gsm8k"}
    assert kept.number("test") == 2


def test_a_training_question_has_the_demonstration_and_a_sample_of_each_round(
    tmp_path: Path,
) -> None:
    path = write_run(tmp_path / "mine", WrittenStages(TESTS, samples=("0110",)))
    asked = {"id": "gsm8k/train/0", "benchmark": "gsm8k", "text": "?", "choices": ["a", "b"]}
    rows = [asked | {"reference": "A"}]
    parquet.write(path / "questions/gsm8k/train.parquet", rows, parquet.QUESTION)
    said = [parquet.to_row(answer("gsm8k/train/0", "1", text="so A", stop="length"))]
    parquet.write(path / "demonstrations/completions/part.parquet", said, parquet.GRADED)
    (example,) = (found for found in read_examples(read_run(path)).shown if found.part != "test")
    assert example.choices == (("A", "a"), ("B", "b")) and example.change == ""
    notes = [(shown.source, shown.note, shown.text) for shown in example.answers]
    assert notes == [
        ("teacher", "demonstration, cut off by the token limit", "so A"),
        ("round_01", "1 of 4 samples, 2 are right", "2 + 2 = 4"),
    ]


def test_texts_are_made_fit_to_be_shown() -> None:
    assert showable("a\x00b\ud83dc\r\nd\te\x1b[31m") == "a\ufffdb\ufffdc\nd\te\ufffd[31m"
    assert showable("weiß 🙂 עברית") == "weiß 🙂 עברית"
    assert cut("abcdef", 4) == ("abcd", 2) and cut("abc", 4) == ("abc", 0)
    assert [duration(s) for s in (4.4, 250, 11_100)] == ["4 s", "4 min 10 s", "3 h 05 min"]
    assert [large(n) for n in (812, 54_200, 1_900_000)] == ["812", "54.2 K", "1.9 M"]
