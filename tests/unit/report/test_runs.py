"""`sirt report` on run folders of a few questions, with numbers by hand."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from sirt_ray.cli.main import main
from tests.helpers.fakes import Killed
from tests.helpers.written_runs import WrittenStages, write_run

TESTS = {
    "teacher": {"gsm8k": "11111110", "multiarith": "1111"},
    "baseline": {"gsm8k": "00000000", "multiarith": "000?"},
    "round_00": {"gsm8k": "11000000", "multiarith": "1100"},
    "round_01": {"gsm8k": "01111110", "multiarith": "1000"},
}
OTHER = TESTS | {
    "round_00": {"gsm8k": "11110000", "multiarith": "1100"},
    "round_01": {"gsm8k": "11110011", "multiarith": "1100"},
}


def reported(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["report", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["report", *map(str, arguments)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and "Traceback" not in told.err
    return told.err


def sections(markdown: str) -> Mapping[str, dict[str, list[str]]]:
    """Title -> first cell of a row -> its other cells."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in markdown.split("\n## ")[1:]:
        title, *lines = part.splitlines()
        rows = [line[2:-2].split(" | ") for line in lines if line.startswith("| ")]
        found[title] = {first: cells for first, *cells in rows if first}
    return found


def test_one_run_has_errors_over_questions_and_paired_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "mine", WrittenStages(TESTS))
    found = sections(reported(capsys, run, "--format", "markdown"))
    scores = found["Accuracy, % right ± standard error"]
    assert scores["stage"] == ["gsm8k, cot", "gsm8k, plain", "multiarith, cot", "multiarith, plain"]
    assert scores["baseline"][2] == "0.0 ± 0.0"
    # sqrt(0.25 * 0.75 / 8)
    assert scores["round_00"] == ["25.0 ± 15.3", "0.0 ± 0.0", "50.0 ± 25.0", "0.0 ± 0.0"]
    tuned = found["Difference to round_00, points"]
    assert list(tuned) == ["stage", "round_01"]
    # Five gained and one lost of eight: p = 2 (1 + 6) / 64.
    gain = tuned["round_01"][0]
    assert gain.startswith("+50.0 [") and gain.endswith("] p 0.219")
    # One lost of four: the interval's ends are multiples of a quarter.
    assert tuned["round_01"][2] == "-25.0 [-75.0, +0.0] p 1.000"
    assert list(found["Difference to baseline, points"])[1:] == [
        "round_00",
        "round_01",
    ]
    teacher = found["Difference to teacher, points"]
    assert len(teacher) == 4 and teacher["round_01"][0].startswith("-12.5 [")


def test_answers_to_validation_questions_are_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are 40 tokens long."""
    run = write_run(tmp_path / "mine", WrittenStages(TESTS))
    found = sections(reported(capsys, run, "--format", "markdown"))
    assert found["Length of an answer, mean tokens"]["round_00"] == ["3.0", "2.0", "3.0", "2.0"]
    chains = found["Answers with a chain of thought, %"]
    assert chains["round_01"] == ["100.0", "0.0", "100.0", "0.0"]
    assert found["Answers cut off by the token limit, %"]["teacher"][:2] == ["0.0", "100.0"]
    assert found["Answers without a readable final answer, %"]["baseline"][2] == "25.0"
    assert found["Repeated 4-grams of an answer, mean %"]["round_01"][0] == "0.0"


def test_samples_funnel_and_contamination(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "mine", WrittenStages(TESTS, samples=("1100", "1110")))
    found = sections(reported(capsys, run, "--format", "markdown"))
    samples = found["Samples of a round, % of its questions"]
    assert {name: cells[0] for name, cells in samples.items() if name != "stage"} == {
        "round_01, pass@1": "62.5",  # (2/4 + 3/4) / 2
        "round_01, pass@2": "91.7",  # (5/6 + 1) / 2
        "round_01, pass@4": "100.0",
        "round_01, majority@4": "75.0",  # a tie and a majority
    }
    funnel = found["From questions to training examples"]
    assert funnel["figure"] == ["seed 0"]
    assert funnel["questions: gsm8k, training: dropped duplicate"] == ["1"]
    assert funnel["round_00/student: not chosen to tune on"] == ["1"]
    assert funnel["round_01/samples: right"] == ["5"]
    assert funnel["round_01/pairs: questions paired"] == ["2"]
    assert funnel["round_01/student: trained on"] == ["4"]
    assert "round_01/samples: truncated" not in funnel
    seen = found["Test questions seen in training"]
    assert seen["gsm8k: test questions"] == ["8"]
    assert seen["gsm8k: the text of a training question"] == ["1"]
    assert seen["multiarith: 13 words in a row of one"] == ["0"]


def test_seeds_are_pooled_and_their_differences_paired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_run(tmp_path / "one", WrittenStages(TESTS))
    two = write_run(tmp_path / "two", WrittenStages(OTHER), seed=1)
    text = reported(capsys, one, two, "--format", "markdown")
    found = sections(text)
    scores = found["Accuracy, % right ± standard error over seeds"]
    assert scores["round_00"][0] == "37.5 ± 12.5"
    assert scores["round_01"][0] == "75.0 ± 0.0"
    assert list(scores)[-1] == "round_01 - round_00"
    assert scores["round_01 - round_00"][0] == "+37.5 ± 12.5"
    assert scores["round_01 - round_00"][2] == "-12.5 ± 12.5"
    # Student's t with one degree of freedom: 37.5 ± 12.706 * 12.5.
    gain = found["Difference to round_00, points"]["round_01"]
    assert gain[0] == "+37.5 ± 12.5 [-121.3, +196.3]"
    assert "the same under every seed" in text
    assert found["From questions to training examples"]["figure"] == ["seed 0", "seed 1"]


def test_the_terminal_shows_all_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stages = WrittenStages(TESTS, held_out={"round_00": 60, "round_01": 30})
    run = write_run(tmp_path / "mine", stages)
    text = reported(capsys, run, "--format", "text")
    assert "(rolled back)" in text
    assert "in-domain" in text and "out-domain" in text and "…" not in text
    assert "25.0 ± 15.3" in text and "p 0.219" in text and "majority@4" in text
    out = tmp_path / "report.md"
    assert reported(capsys, run, "--format", "markdown", "--out", out) == ""
    assert out.read_text().startswith("# Report of mine\n")
    assert "| round_01 (rolled back) | 75.0 ± 15.3 |" in out.read_text()
    assert "in-domain | in-domain | out-domain" in out.read_text()
    assert str(tmp_path / "nowhere") in refused(
        capsys, run, "--format", "text", "--out", tmp_path / "nowhere" / "x"
    )


def test_an_unfinished_run_reports_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Killed):
        write_run(tmp_path / "mine", WrittenStages(TESTS, kill_in="refine 1 from round_00"))
    text = reported(capsys, tmp_path / "mine", "--format", "markdown")
    assert "is not finished: round_01/student, round_01/evaluation are missing" in text
    assert "Difference to baseline" in text and "Difference to round_00" not in text
    assert "round_01, pass@4" in text
    finished = write_run(tmp_path / "other", WrittenStages(OTHER), seed=1)
    both = reported(capsys, finished, tmp_path / "mine", "--format", "markdown")
    assert "round_01 is not evaluated in every run" in both


def test_a_run_that_has_only_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "mine", WrittenStages(TESTS))
    for artifact in ("questions", "demonstrations", "teacher", "baseline", "round_00", "round_01"):
        shutil.rmtree(run / artifact)
    text = reported(capsys, run, "--format", "markdown")
    assert "questions, demonstrations, teacher/evaluation" in text and "##" not in text


def test_folders_that_cannot_be_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "mine", WrittenStages(TESTS))
    assert "no config.yaml and no study.json" in refused(capsys, tmp_path)
    refine = {"rounds": 1, "beta": 0.3}
    other = write_run(tmp_path / "other", WrittenStages(TESTS), seed=1, refine=refine)
    assert "refine.beta: 0.1 -> 0.3" in refused(capsys, run, other)
    assert "both have seed 0" in refused(capsys, run, run)
    (run / "round_01/evaluation/part.parquet").write_text("no table")
    assert "round_01/evaluation/part.parquet cannot be read" in refused(capsys, run)
    (run / "round_01/pairs/record.json").write_text("{")
    assert "the record of" in refused(capsys, run)


def test_a_run_of_an_earlier_version_did_not_look_for_contamination(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "mine", WrittenStages(TESTS))
    record = json.loads((run / "questions/record.json").read_text())
    for counts in record["counts"].values():
        del counts["contamination"]
    (run / "questions/record.json").write_text(json.dumps(record))
    text = reported(capsys, run, "--format", "markdown")
    assert "were not counted" in text and "## Test questions seen" not in text
