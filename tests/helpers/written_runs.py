"""Run folders of a few questions, written by the real loop, store and tables.

Only the models are missing: what they would have answered is said by a pattern, `1` for right, `0`
for wrong, `?` for unparseable, one character for each question.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from sirt_ray.artifacts import parquet
from sirt_ray.artifacts.store import Artifact, Store
from sirt_ray.benchmarks.contamination import contamination
from sirt_ray.config import load
from sirt_ray.core.interfaces import Counts, Model
from sirt_ray.core.pairs import make_pairs
from sirt_ray.core.scoring import scores_to_json, tally
from sirt_ray.report.journal import RunJournal
from sirt_ray.types import Graded, PromptKind, Question, StopReason, Verdict
from tests.helpers.fakes import FakeStages, graded, job, run_fake

VERDICTS: Mapping[str, Verdict] = {"1": "right", "0": "wrong", "?": "unparseable"}
TRAINED = {"steps": 1, "chosen_step": 1, "left_out": {}}


def question(name: str, part: str, row: int) -> Question:
    return Question(f"{name}/{part}/{row}", name, f"{name} {part} {row}?", (), "4")


def answer(
    question: str,
    verdict: str,
    kind: PromptKind = "cot",
    index: int = 0,
    text: str = "2 + 2 = 4",
    length: int = 3,
    stop: StopReason = "stop",
) -> Graded:
    """`length`: its tokens, of which no two answers of a question have the same."""
    ids = (int(verdict == "1"), index, *range(length - 2))
    return graded(
        question, index, kind=kind, verdict=VERDICTS[verdict], ids=ids, text=text, stop=stop
    )


class WrittenStages(FakeStages):
    """`tests`: stage -> benchmark -> pattern of the CoT-Answers to its test questions; Answers to
    the plain prompt are all wrong. `samples`: a pattern for each training question of gsm8k."""

    def __init__(
        self,
        tests: Mapping[str, Mapping[str, str]],
        samples: tuple[str, ...] = ("1100", "1110"),
        **known: Any,
    ) -> None:
        super().__init__(**known)
        self.tests, self.samples = tests, samples
        first = next(iter(tests.values()))
        self.asked = {
            name: [question(name, "test", row) for row in range(len(pattern))]
            for name, pattern in first.items()
        }

    def questions(self, out: Path) -> Counts:
        counts: dict[str, Any] = {name: {} for name in self.asked}
        rows = {"rows": 3, "train": 2, "validation": 0, "dropped_duplicate": 1, "missing": 0}
        counts["gsm8k"]["training_rows"] = {**rows, "train_also_in_test": 0}
        train = [question("gsm8k", "train", row) for row in range(len(self.samples))]
        seen = contamination([*train, self.asked["gsm8k"][0]], self.asked)
        for name, asked in self.asked.items():
            parquet.write(out / name / "test.parquet", map(parquet.to_row, asked), parquet.QUESTION)
            counts[name]["test"] = {"questions": len(asked), "sha256": "same"}
            counts[name]["contamination"] = seen[name]
        return counts

    def demonstrate(self, out: Path, **needs: Any) -> Counts:
        sampling = {"completions": 2, "right": 2, "wrong": 0, "unparseable": 0, "truncated": 0}
        return {"questions": 2, "kept": 2, "sampling": {**sampling, "dropped": {}}}

    def tune(self, out: Path, **needs: Any) -> Counts:
        super().tune(out, **needs)
        return {**TRAINED, "examples": 1}

    def refine(self, out: Path, **needs: Any) -> Counts:
        super().refine(out, **needs)
        return {**TRAINED, "examples": 4, "held_out": 1}

    def reference_logps(self, out: Path, **needs: Any) -> Counts:
        return {"pairs": 5, "left_out": {}}

    def sample(self, out: Path, **needs: Any) -> Counts:
        made = [
            answer(f"gsm8k/train/{row}", verdict, index=index)
            for row, pattern in enumerate(self.samples)
            for index, verdict in enumerate(pattern)
        ]
        parquet.write(out / "part.parquet", map(parquet.to_row, made), parquet.GRADED)
        right = "".join(self.samples).count("1")
        return {
            **{"questions": len(self.samples), "completions": len(made), "right": right},
            **{"wrong": len(made) - right, "unparseable": 0, "truncated": 0},
            **{"without_teacher_answer": 0, "dropped": {}},
        }

    def pair(self, out: Path, *, samples: Artifact, **needs: Any) -> Counts:
        rows = parquet.records(Graded, samples.path)
        return make_pairs(rows, job(refine={"pairs": {"rule": "correctness"}}).refine.pairs, "0")[1]

    def evaluate(self, out: Path, *, model: Model, questions: Artifact) -> Counts:
        cot = [
            answer(asked.id, verdict)
            for name, pattern in self.tests[model.version].items()
            for asked, verdict in zip(self.asked[name], pattern, strict=True)
        ]
        plain = [
            answer(asked.id, "0", "plain", text="4", length=2, stop="length")
            for of_name in self.asked.values()
            for asked in of_name
        ]
        held_out = [answer("gsm8k/train/9", "1", length=40)]
        parquet.write(
            out / "part.parquet", map(parquet.to_row, [*cot, *plain, *held_out]), parquet.GRADED
        )
        found = tally(
            (item.completion.benchmark, item.completion.prompt_kind, item.verdict == "right")
            for item in [*cot, *plain]
        )
        validation = super().evaluate(out, model=model, questions=questions)["validation"]
        return {"test": scores_to_json(found), "validation": validation}


def write_run(root: Path, stages: FakeStages, **changes: Any) -> Path:
    """A run in `root`; `changes` are sections of its job."""
    data = {"train": ["gsm8k"], "evaluate": ["multiarith", "gsm8k"]}
    resolved = job(**{"data": data, "name": root.name, "refine": {"rounds": 1}, **changes})
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(load.dump(resolved))
    journal = RunJournal(root, Console(quiet=True))
    run_fake(resolved, stages, Store(root), journal)
    return root
