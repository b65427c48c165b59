"""Tasks, verifiers and pair rules that a job brings: what they do, and when they are executed."""

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from fakes import graded

from sirt_ray import jobfile, own_code, studies
from sirt_ray.benchmarks.own import made_rows, own_benchmark
from sirt_ray.benchmarks.registry import REGISTRY, benchmarks_of, grade_of
from sirt_ray.cli import main
from sirt_ray.config import DataConfig, JobConfig
from sirt_ray.core import identity, prompts
from sirt_ray.core.own_pairs import OwnRule
from sirt_ray.core.pairs import make_pairs
from sirt_ray.errors import ConfigError, DataError, StageError
from sirt_ray.on_ray.data import rows_identity
from sirt_ray.on_ray.jobs import pack
from sirt_ray.own_benchmarks import OwnBenchmarkConfig
from sirt_ray.recipes import PairsConfig
from sirt_ray.types import Judgement, Question

JOBS = Path(__file__).parents[2] / "jobs"
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
    monkeypatch.setenv(own_code.ALLOW, "0")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(output=tmp_path / "runs"))
    return path


def load(path: Path, *overrides: str) -> JobConfig:
    return jobfile.load(path, overrides, REGISTRY)


def code(tmp_path: Path, text: str, function: str = "own") -> own_code.OwnCode:
    """A function of a file, which may be executed."""
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(text))
    own_code.allow()
    return own_code.read(f"{path}:{function}")


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
        rules = {cell.job.refine.pairs.rule for cell in studies.load(study, [], REGISTRY).cells}
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
        from sirt_ray.artifacts import Artifact, canonical

        rows, made = rows_identity(job.data), Artifact("x", Path("x"), "0", {})
        return canonical(identity.questions(job, rows)), canonical(identity.pairs(job, made, made))

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
        own_code.keep(read.code, run_dir)
        kept = read.with_code(own_code.kept)
        (run_dir / "config.yaml").write_text(jobfile.dump(kept))
        (tmp_path / "code" / "own.py").unlink()
        again = load(run_dir / "config.yaml")
        assert again.refine.pairs.rule == f"{run_dir}/code/own.py:rule"
        own_code.check(again.code)


class TestJourney:
    def test_a_process_elsewhere_needs_no_file(self, job: Path, tmp_path: Path) -> None:
        own_code.allow()
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
        files = [own_code.file_of(reference) for reference in load(job).code]
        (tmp_path / "sent").mkdir()
        pack(tmp_path / "sent", job, False, files)
        sent = load(tmp_path / "sent" / "job.yaml")
        assert sent.data.benchmarks["sums"].rows == f"{tmp_path}/sent/code/own.py:rows"
        own_code.check(sent.code)

    def test_a_file_from_elsewhere_is_not_sent(self, job: Path, tmp_path: Path) -> None:
        (tmp_path / "sent").mkdir()
        with pytest.raises(ConfigError, match=r"Put it beside job\.yaml"):
            pack(tmp_path / "sent", job, False, [Path(__file__)])


def question_of(row: dict[str, object], **config: Any) -> Question:
    benchmark = own_benchmark("mine", OwnBenchmarkConfig(**config))
    return benchmark.to_question(row, "mine/test/0")


class TestColumns:
    def test_a_number(self) -> None:
        row = {"prompt": "2 + 2?", "target": 4}
        question = question_of(row, question="prompt", answer="target", instruction="Add.")
        assert question == Question("mine/test/0", "mine", "2 + 2?", (), "4", "Add.")
        assert prompts.render(question, "plain") == "Add.\nQuestion: 2 + 2?\nAnswer:"

    @pytest.mark.parametrize("answer", ["B", "pear", 1, "1"])
    def test_an_option_in_each_way_to_name_it(self, answer: object) -> None:
        row = {"question": "Which?", "choices": ["plum", "pear", "fig"], "answer": answer}
        assert question_of(row, choices="choices").reference == "B"

    @pytest.mark.parametrize(("answer", "why"), [("grape", "neither"), ("B", "may mean several")])
    def test_an_option_that_is_not_clear(self, answer: str, why: str) -> None:
        row = {"question": "Which?", "choices": ["B", "A"], "answer": answer}
        with pytest.raises(DataError, match=why):
            question_of(row, choices="choices")

    def test_an_answer_that_is_no_number(self) -> None:
        with pytest.raises(DataError, match="not a number"):
            question_of({"question": "Who?", "answer": "she"})

    def test_text_needs_a_verifier(self) -> None:
        with pytest.raises(ValueError, match="verifier"):
            OwnBenchmarkConfig(kind="text")

    def test_without_rows_or_a_root_it_says_both_ways_out(self) -> None:
        config = {"train": ["mine"], "evaluate": ["mine"], "benchmarks": {"mine": {}}}
        with pytest.raises(DataError, match=r"Set data\.root .* or rows to a function"):
            rows_identity(DataConfig.model_validate(config))

    def test_rows_from_files_are_known_by_their_content(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            path = tmp_path / "mine" / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text('{"q": "1?", "answer": 1}\n')
        config = {"train": ["mine"], "evaluate": ["mine"], "root": str(tmp_path)}
        data = DataConfig.model_validate(config | {"benchmarks": {"mine": {"question": "q"}}})
        before = rows_identity(data)
        (tmp_path / "mine" / "test.jsonl").write_text('{"q": "2?", "answer": 2}\n')
        assert rows_identity(data)["mine/test"] != before["mine/test"]
        assert rows_identity(data)["mine/train"] == before["mine/train"]


class TestWhatIsReturned:
    """Of code that breaks the contract: one message with file, function and row."""

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("return [{'question': '1?', 'answer': 1}, 7]", "row 1 is 7"),
            ("return [{'question': '1?'}]", "row 0 .* no 'answer'"),
            ("return [{'question': '?', 'answer': a} for a in ([1], 'x')]", "make no table"),
            ("return 1 / 0", "own.py:2: own failed for split train: ZeroDivisionError"),
            ("return None", "own failed for split train: TypeError"),
        ],
    )  # fmt: skip
    def test_rows(self, tmp_path: Path, body: str, words: str) -> None:
        read = code(tmp_path, f"def own(split):\n    {body}\n")
        benchmark = own_benchmark("mine", OwnBenchmarkConfig(rows=f"{read.file}:own"))
        with pytest.raises((DataError, StageError), match=words) as told:
            made_rows(benchmark, "train")
        assert read.file in str(told.value)

    @pytest.mark.parametrize(
        "body",
        [
            "return 'right'",
            "return Judgement('correct', '4', stated=True)",
            "return Judgement('right', None, stated=True)",
            "return Judgement('unparseable', '4', stated=False)",
            "return Judgement('right', 4, stated=True)",
            "return Judgement('right', '4', stated=1)",
            "raise KeyError(text)",
        ],
    )
    def test_verdicts(self, tmp_path: Path, body: str) -> None:
        text = f"from sirt_ray.types import Judgement\ndef own(text, question):\n    {body}\n"
        read = code(tmp_path, text)
        config = OwnBenchmarkConfig(verifier=f"{read.file}:own")
        with pytest.raises(StageError, match=r"own\.py.* own .*question sums/test/0"):
            own_benchmark("sums", config).grade("so 4", QUESTION)

    @pytest.mark.parametrize(
        "body",
        [
            "return [answers[0]]",
            "return [(answers[0], answers[0])]",
            "return [(answers[0], 'wrong')]",
            "return 5",
            "return [(answers[0], None)]",
        ],
    )
    def test_pairs(self, tmp_path: Path, body: str) -> None:
        rule = OwnRule(code(tmp_path, f"def own(answers, rng):\n    {body}\n"))
        with pytest.raises(StageError, match=r"own\.py.*own .*question a"):
            rule.sides("a", SAMPLES, "0/1")

    def test_a_file_that_fails_when_it_is_executed(self, tmp_path: Path) -> None:
        read = code(tmp_path, "import a_neighbouring_file\ndef own(split): ...\n")
        with pytest.raises(StageError, match="installed on every node"):
            read.load()


SAMPLES = [
    graded("a", 0, ids=(10, 2)),
    graded("a", 1, ids=(11, 2)),
    graded("a", 2, ids=(12, 2), verdict="wrong"),
    graded("a", 3, ids=(13, 2), verdict="wrong"),
    graded("a", 4, ids=(14,), stop="length"),
]


class TestPairRule:
    def test_its_pairs_are_taken_up_to_the_most(self, job: Path) -> None:
        own_code.allow()
        rule = OwnRule(own_code.read(load(job).refine.pairs.rule))
        config = PairsConfig(rule="own.py:rule", max_per_question=1)
        pairs, counts = make_pairs(SAMPLES, config, "0/1", own=rule)
        assert [pair.rule for pair in pairs] == ["own"]
        assert counts["own_beyond_max_per_question"] == 1 and counts["completions_truncated"] == 1
        assert make_pairs(SAMPLES, config, "0/1", own=rule)[0] == pairs
        nothing, counts = make_pairs(SAMPLES[:2], config, "0/1", own=rule)
        assert nothing == [] and counts["own_without_pair"] == 1

    def test_one_that_draws_from_elsewhere_is_found_out(self, tmp_path: Path) -> None:
        text = """
            import itertools
            turn = itertools.count()
            def own(answers, rng):
                return [(answers[next(turn) % 2], answers[2])]
            """
        rule = OwnRule(code(tmp_path, text))
        with pytest.raises(StageError, match="the same when it was asked again"):
            rule.sides("a", SAMPLES, "0/1")

    def test_even_rounds_may_have_one_of_their_own(self, job: Path, tmp_path: Path) -> None:
        read = load(job, "refine.rounds=2", 'refine.even_rounds={pairs: {rule: "own2.py:rule"}}')
        assert read.refine.of_round(2).pairs.rule == f"{tmp_path}/own2.py:rule"
        assert f"{tmp_path}/own2.py:rule" in read.code


def test_the_example_is_short_and_does_what_it_says() -> None:
    job = load(JOBS / "own_task.yaml")
    assert len((JOBS / "own_task.py").read_text().splitlines()) < 30
    own_code.allow()
    benchmark = benchmarks_of(job.data)["coins"]
    table, _ = made_rows(benchmark, "train")
    question = benchmark.to_question(table.to_pylist()[0], "coins/train/0")
    assert table.num_rows == 400 and question.text.startswith("Mia has")
    right = Judgement("right", question.reference, stated=True)
    assert benchmark.grade(f"so it is {question.reference}.", question) == right
    assert benchmark.grade("I do not know.", question).verdict == "unparseable"
    rule = OwnRule(own_code.read(job.refine.pairs.rule))
    assert {id(chosen) for chosen, _ in rule.sides("a", SAMPLES, "0/1")} == {id(SAMPLES[0])}
