"""`sirt evaluate` as a user runs it: once, again, and with other settings."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sirt_ray.core.scoring import score_of

NUM = 12

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


def evaluate(out: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sirt_ray", "evaluate", "quickstart:student"]
    command += ["--benchmarks", "word_problems,letter_choices_ood", "--out", str(out)]
    command += ["--set", "sampling.max_tokens=96", "--set", "engine.max_model_len=256"]
    return subprocess.run(
        [*command, "--num", str(NUM), *more],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores") / "student"
    done = evaluate(out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "With the trigger" in done.stdout and "Without the trigger" in done.stdout
    assert "in-domain" not in done.stdout and str(out) in done.stdout.replace("\n", "")
    return out


def test_scores_are_those_of_the_graded_answers(scored: Path) -> None:
    scores = json.loads((scored / "scores.json").read_text())
    assert list(scores) == ["quickstart:student"]
    parts = (scored / "evaluation").glob("*.parquet")
    answers = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert len(answers) == 2 * 2 * NUM
    for benchmark in ("word_problems", "letter_choices_ood"):
        assert set(scores["quickstart:student"][benchmark]) == {"cot", "plain"}
        for kind, score in scores["quickstart:student"][benchmark].items():
            verdicts = [
                answer["verdict"]
                for answer in answers
                if (answer["benchmark"], answer["prompt_kind"]) == (benchmark, kind)
            ]
            expected = score_of(verdicts.count("right"), NUM)
            found = (score["accuracy"], score["stderr"], score["n"])
            assert found == (expected.accuracy, expected.stderr, NUM)
    # The shipped student knows something: a path that asks in other words finds nothing.
    assert scores["quickstart:student"]["word_problems"]["cot"]["accuracy"] > 0


def test_what_is_finished_is_not_asked_again(scored: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (scored / "evaluation").iterdir()}
    scores = (scored / "scores.json").read_text()
    done = evaluate(scored)
    assert done.returncode == 0 and "kept" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (scored / "evaluation").iterdir()} == before
    assert (scored / "scores.json").read_text() == scores


def test_other_settings_are_refused_in_the_same_folder(scored: Path) -> None:
    done = evaluate(scored, "--seed", "7")
    assert done.returncode == 2
    assert "seed: 0 -> 7" in done.stderr and "--out" in done.stderr
