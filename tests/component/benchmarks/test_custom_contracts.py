"""What tasks, verifiers and pair rules of a job's own have to give, and what is said where they do
not."""

import textwrap
from pathlib import Path
from typing import Any

import pytest

from sirt_ray import user_code
from sirt_ray.benchmarks.custom import custom_benchmark, made_rows
from sirt_ray.benchmarks.registry import REGISTRY, benchmarks_of
from sirt_ray.config import load
from sirt_ray.config.custom import CustomBenchmarkConfig
from sirt_ray.config.data import DataConfig
from sirt_ray.config.training import PairsConfig
from sirt_ray.core import prompts
from sirt_ray.core.pairs import CustomPairRule, make_pairs
from sirt_ray.errors import DataError, StageError
from sirt_ray.on_ray.data.read import rows_identity
from sirt_ray.types import Judgement, Question
from tests.helpers.fakes import graded
from tests.helpers.paths import JOBS

QUESTION = Question("sums/test/0", "sums", "How many?", (), "4")
RULE = """
    def own(answers, rng):
        right = [a for a in answers if a.verdict == "right"]
        wrong = [a for a in answers if a.verdict == "wrong"]
        rng.shuffle(right)
        return zip(right, wrong)
    """


@pytest.fixture(autouse=True)
def everything_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(user_code.ALLOW, "1")


def code(tmp_path: Path, text: str, function: str = "own") -> user_code.UserFunction:
    """A function of a file, which may be executed."""
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(text))
    return user_code.read(f"{path}:{function}")


def question_of(row: dict[str, object], **config: Any) -> Question:
    benchmark = custom_benchmark("mine", CustomBenchmarkConfig(**config))
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
            CustomBenchmarkConfig(kind="text")

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
            ("return 1 / 0", "own.py:2: own failed for split train: ZeroDivisionError"),
            ("return None", "own failed for split train: TypeError"),
        ],
    )  # fmt: skip
    def test_rows(self, tmp_path: Path, body: str, words: str) -> None:
        read = code(tmp_path, f"def own(split):\n    {body}\n")
        benchmark = custom_benchmark("mine", CustomBenchmarkConfig(rows=f"{read.file}:own"))
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
        config = CustomBenchmarkConfig(verifier=f"{read.file}:own")
        with pytest.raises(StageError, match=r"own\.py.* own .*question sums/test/0"):
            custom_benchmark("sums", config).grade("so 4", QUESTION)

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
        rule = CustomPairRule(code(tmp_path, f"def own(answers, rng):\n    {body}\n"))
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
    def test_its_pairs_are_taken_up_to_the_most(self, tmp_path: Path) -> None:
        rule = CustomPairRule(code(tmp_path, RULE))
        config = PairsConfig(rule="own.py:rule", max_per_question=1)
        pairs, counts = make_pairs(SAMPLES, config, "0/1", custom_rule=rule)
        assert [pair.rule for pair in pairs] == ["own"]
        assert (
            counts["pairs_rank_above_max_per_question"] == 1
            and counts["completions_truncated"] == 1
        )
        assert make_pairs(SAMPLES, config, "0/1", custom_rule=rule)[0] == pairs
        nothing, counts = make_pairs(SAMPLES[:2], config, "0/1", custom_rule=rule)
        assert nothing == [] and counts["questions_no_own_pair"] == 1

    def test_one_that_draws_from_elsewhere_is_found_out(self, tmp_path: Path) -> None:
        text = """
            import itertools
            turn = itertools.count()
            def own(answers, rng):
                return [(answers[next(turn) % 2], answers[2])]
            """
        rule = CustomPairRule(code(tmp_path, text))
        with pytest.raises(StageError, match="question a, and not the same when it was"):
            rule.sides("a", SAMPLES, "0/1")


def test_the_example_is_short_and_does_what_it_says() -> None:
    job = load.load(JOBS / "own_task.yaml", (), REGISTRY)
    assert len((JOBS / "own_task.py").read_text().splitlines()) < 30
    benchmark = benchmarks_of(job.data)["coins"]
    rows = made_rows(benchmark, "train")
    question = benchmark.to_question(rows[0], "coins/train/0")
    assert len(rows) == 400 and "coins in each bag" in question.text
    right = Judgement("right", question.reference, stated=True)
    assert benchmark.grade(f"so it is {question.reference}.", question) == right
    assert benchmark.grade("I do not know.", question).verdict == "unparseable"
    rule = CustomPairRule(user_code.read(job.refine.pairs.rule))
    assert {id(chosen) for chosen, _ in rule.sides("a", SAMPLES, "0/1")} == {id(SAMPLES[0])}
