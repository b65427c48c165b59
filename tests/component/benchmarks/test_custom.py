"""Tasks, verifiers and pair rules that a job brings: what they do, and when they are executed."""

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from sirt_ray import user_code
from sirt_ray.benchmarks.custom import made_rows
from sirt_ray.benchmarks.registry import REGISTRY, benchmarks_of, grade_of
from sirt_ray.cli.main import main
from sirt_ray.config import load as jobfile
from sirt_ray.config import study as studies
from sirt_ray.config.job import JobConfig
from sirt_ray.core import steps
from sirt_ray.errors import ConfigError
from sirt_ray.on_ray.data.read import rows_identity
from sirt_ray.on_ray.submit.client import pack
from sirt_ray.types import Question
from tests.helpers.paths import JOBS

CODE = """\
import pathlib
from sirt_ray.types import Judgement

pathlib.Path({ran!r}).touch()

def rows(split):
    return [{{"question": f"{{split}} {{n}}?", "answer": n}} for n in range(3)]

def judge(text, question):
    return Judgement("right" if question.reference in text else "wrong", text, stated=True)

def rule(answers, rng):
    right = [a for a in answers if a.verdict == "right"]
    wrong = [a for a in answers if a.verdict == "wrong"]
    rng.shuffle(right)
    return zip(right, wrong)
"""
JOB = """\
name: mine
output: {output}
data:
  train: [sums]
  evaluate: [sums, word_problems]
  benchmarks:
    sums: {{rows: "code/own.py:rows", verifier: "code/own.py:judge"}}
teacher: {{model: "quickstart:teacher"}}
student: {{model: "quickstart:student"}}
refine: {{pairs: {{rule: "code/own.py:rule"}}}}
"""
QUESTION = Question("sums/test/0", "sums", "How many?", (), "4")
NOT_ALLOWED = r"--allow-code"


@pytest.fixture(autouse=True)
def nothing_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set before it is deleted, so that what `--allow-code` sets is taken back after the test.
    monkeypatch.setenv(user_code.ALLOW, "0")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(output=tmp_path / "runs"))
    return path


def load(path: Path, *overrides: str) -> JobConfig:
    return jobfile.load(path, overrides, REGISTRY)


class TestWhenItIsExecuted:
    def test_planning_shows_the_file_and_executes_nothing(
        self, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["plan", str(job)]) == 0
        assert main(["run", str(job), "--dry-run"]) == 0
        told = capsys.readouterr().out
        assert f"{tmp_path}/code/own.py (rows, judge, rule)" in told.replace("\n", "")
        assert not (tmp_path / "ran").exists()

    def test_a_run_is_refused_until_it_is_allowed(
        self, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["run", str(job)]) == 2
        told = capsys.readouterr().err
        assert "own.py" in told and NOT_ALLOWED in told
        assert not (tmp_path / "ran").exists() and not (tmp_path / "runs").exists()

    def test_so_are_a_study_and_a_submission(
        self, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = textwrap.indent(job.read_text().split("\n", 2)[2], "  ")
        study = tmp_path / "study.yaml"
        study.write_text(f"study: s\noutput: {tmp_path}/runs\njob:\n{text}grid: {{seed: [0, 1]}}\n")
        assert main(["run", str(study)]) == 2
        assert main(["submit", str(job), "--address", "http://127.0.0.1:1"]) == 2
        assert capsys.readouterr().err.count(NOT_ALLOWED) == 2
        assert not (tmp_path / "ran").exists()
        rules = {trial.job.refine.pairs.rule for trial in studies.load(study, [], REGISTRY).trials}
        assert rules == {f"{tmp_path}/code/own.py:rule"}

    def test_nothing_gets_around_the_check(self, job: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=NOT_ALLOWED):
            made_rows(benchmarks_of(load(job).data)["sums"], "train")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("place", ["https://host/own.py:rows", "own:rows", "own.py", "own.py:"])
    def test_only_local_files_are_named(self, job: Path, place: str) -> None:
        job.write_text(job.read_text().replace("code/own.py:rows", place))
        with pytest.raises(ConfigError, match=r"path\.py:function"):
            load(job)

    def test_what_is_not_there_is_named_at_once(
        self, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job.write_text(job.read_text().replace("own.py:rows", "own.py:raws"))
        assert main(["plan", str(job), "--set", "refine.pairs.rule=nowhere.py:rule"]) == 2
        told = capsys.readouterr().err.replace("\n", " ")
        assert told.count("no function raws") == 1 and "rows, judge, rule" in told
        assert told.count("nowhere.py:rule") == 1

    def test_a_name_that_is_taken(self, job: Path) -> None:
        job.write_text(job.read_text().replace("sums", "gsm8k"))
        with pytest.raises(ConfigError, match="gsm8k: there is a benchmark of that name"):
            load(job)

    def test_a_task_that_is_not_asked_is_not_looked_at(
        self, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "code" / "own.py").unlink()
        more = ["data.train=[word_problems]", "data.evaluate=[gsm8k]", "refine.pairs.rule=spin"]
        assert load(job, *more).code == []
        assert set(benchmarks_of(load(job, *more).data)) == set(REGISTRY)


class TestIdentity:
    def stated(self, job: JobConfig) -> tuple[Any, ...]:
        from sirt_ray.artifacts.store import Artifact, canonical

        rows, made = rows_identity(job.data), Artifact("x", Path("x"), "0", {})
        return canonical(steps.questions(job, rows).inputs), canonical(
            steps.pairs(job, 1, made, made).inputs
        )

    def test_it_follows_the_content_and_not_the_path(self, job: Path, tmp_path: Path) -> None:
        before = self.stated(load(job))
        (tmp_path / "code").rename(tmp_path / "moved")
        job.write_text(job.read_text().replace("code/", "moved/"))
        assert self.stated(load(job)) == before
        with (tmp_path / "moved" / "own.py").open("a") as file:
            file.write("# changed\n")
        questions, pairs = self.stated(load(job))
        assert questions != before[0] and pairs != before[1]

    def test_a_column_or_an_instruction_counts(self, job: Path) -> None:
        before = self.stated(load(job))[0]
        for change in ("answer=gold", "instruction=Count.", "kind=text"):
            changed = load(job, f"data.benchmarks.sums.{change}")
            assert self.stated(changed)[0] != before

    def test_jobs_without_such_tasks_are_what_they_were(self) -> None:
        job = load(JOBS / "quickstart.yaml")
        questions, pairs = self.stated(job)
        assert "benchmarks" not in questions["data"]
        assert pairs["pairs"]["rule"] == "correctness" and "own_rule" not in pairs

    def test_the_run_folder_keeps_the_code(self, job: Path, tmp_path: Path) -> None:
        read, run_dir = load(job), tmp_path / "run"
        user_code.copy_into_run(read.code, run_dir)
        kept = read.with_code(user_code.copied_reference)
        (run_dir / "config.yaml").write_text(jobfile.dump(kept))
        (tmp_path / "code" / "own.py").unlink()
        again = load(run_dir / "config.yaml")
        assert again.refine.pairs.rule == f"{run_dir}/code/own.py:rule"
        user_code.check(again.code)

    def test_even_rounds_may_have_one_of_their_own(self, job: Path, tmp_path: Path) -> None:
        read = load(job, "refine.rounds=2", 'refine.even_rounds={pairs: {rule: "own2.py:rule"}}')
        assert read.refine.of_round(2).pairs.rule == f"{tmp_path}/own2.py:rule"
        assert f"{tmp_path}/own2.py:rule" in read.code


class TestJourney:
    def test_a_process_elsewhere_needs_no_file(self, job: Path, tmp_path: Path) -> None:
        user_code.allow()
        sent = pickle.dumps((grade_of(load(job).data), QUESTION))
        (tmp_path / "code" / "own.py").unlink()
        reader = (
            "import pickle, sys; grade, question = pickle.load(sys.stdin.buffer);"
            "print(grade('so 4', question).verdict, grade('so 5', question).verdict)"
        )
        done = subprocess.run(
            [sys.executable, "-c", reader], input=sent, cwd="/", capture_output=True, check=True,
            env={"PYTHONPATH": str(JOBS.parent)},
        )  # fmt: skip
        assert done.stdout.split() == [b"right", b"wrong"]

    def test_it_is_packed_beside_the_job(self, job: Path, tmp_path: Path) -> None:
        files = [user_code.file_of(reference) for reference in load(job).code]
        (tmp_path / "sent").mkdir()
        pack(tmp_path / "sent", job, False, files)
        sent = load(tmp_path / "sent" / "job.yaml")
        assert sent.data.benchmarks["sums"].rows == f"{tmp_path}/sent/code/own.py:rows"
        user_code.check(sent.code)

    def test_a_file_from_elsewhere_is_not_sent(self, job: Path, tmp_path: Path) -> None:
        (tmp_path / "sent").mkdir()
        with pytest.raises(ConfigError, match=r"Put it next to job\.yaml"):
            pack(tmp_path / "sent", job, False, [Path(__file__)])
