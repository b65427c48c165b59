"""A sample of a run's questions, each with the answers of teacher and student stage by stage."""

import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sirt_ray.artifacts import parquet
from sirt_ray.artifacts.store import RECORD
from sirt_ray.report.page.render import cut, showable
from sirt_ray.report.records import RunRecord
from sirt_ray.report.tables import TUNED
from sirt_ray.storage import object_store
from sirt_ray.types import LETTERS, PromptKind

Part = Literal["test", "training"]
Change = Literal["became right", "became wrong", "stayed right", "stayed wrong", ""]

MAX_QUESTIONS: Mapping[Part, int] = {"test": 64, "training": 32}
"""Questions shown, of all benchmarks together."""
MAX_CHARACTERS = 3_000
"""Characters of a text."""
MAX_TOTAL_CHARACTERS = 1_500_000
"""Characters of all texts together: whole questions beyond it are left out."""
_COLUMNS = (
    *("question_id", "prompt_kind", "sample_index", "completion"),
    *("verdict", "extracted", "stop_reason"),
)


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer in an example."""

    source: str
    """The model that wrote it: `teacher`, `baseline`, `round_00`, ..."""
    note: str
    """A remark such as `1 of 8 samples, 5 are right`."""
    verdict: str
    """`right`, `wrong` or `unparseable`."""
    extracted: str
    text: str
    left_out: int
    """Number of characters that follow `text`."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answers."""

    id: str
    benchmark: str
    part: Part
    text: str
    choices: tuple[tuple[str, str], ...]
    """Letter and text of each option."""
    reference: str
    answers: tuple[ShownAnswer, ...]
    change: Change
    """From the first student that is compared to the last; empty if there are not two."""

    @property
    def characters(self) -> int:
        return len(self.text) + sum(len(answer.text) for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Examples:
    """All examples of a page."""

    shown: tuple[Example, ...]
    questions: Mapping[Part, int]
    """Number of questions in the run."""
    kind: PromptKind
    """The kind of prompt that the shown answers reply to."""
    before: Mapping[Part, str]
    after: Mapping[Part, str]
    """The two students whose answers `Example.change` compares; no entry if there are not two."""

    def number(self, part: Part) -> int:
        return sum(example.part == part for example in self.shown)


def read_examples(run: RunRecord) -> Examples:
    """Draw a sample by the run's seed, with as many questions of each benchmark. Raises DataError
    if a file cannot be read."""
    kind: PromptKind = "cot" if "cot" in run.job.evaluation.prompts else "plain"
    tested = [stage for stage in run.scores if stage != "teacher"]
    rounds = [name for name in run.counts if name.endswith("/samples")]
    sources: dict[Part, tuple[str, str] | None] = {
        "test": _compared(tested),
        "training": _compared([name.removesuffix("/samples") for name in rounds]),
    }
    found: list[Example] = []
    numbers: dict[Part, int] = {"test": 0, "training": 0}
    for part in numbers:
        by_benchmark = _questions(run, part)
        numbers[part] = sum(map(len, by_benchmark.values()))
        chosen = _drawn(by_benchmark, MAX_QUESTIONS[part], f"{run.job.seed}/{part}")
        read = _tested if part == "test" else _trained
        answers = read(run, {row["id"] for row in chosen}, kind)
        found += [_example(row, part, answers[row["id"]], sources[part]) for row in chosen]
    return Examples(
        tuple(_within(found)),
        numbers,
        kind,
        {part: pair[0] for part, pair in sources.items() if pair},
        {part: pair[1] for part, pair in sources.items() if pair},
    )


def _compared(stages: Sequence[str]) -> tuple[str, str] | None:
    """Return the stages that are compared: the last with instruction tuning, or with the first if
    instruction tuning is the last or was left out; None if there are not two."""
    if len(stages) < 2:
        return None
    return (TUNED if TUNED in stages[:-1] else stages[0]), stages[-1]


def _questions(run: RunRecord, part: Part) -> dict[str, list[dict[str, Any]]]:
    """Return the questions of each benchmark."""
    if "questions" not in run.counts:
        return {}
    names, file = {
        "test": (run.job.data.evaluate, "test.parquet"),
        "training": (run.job.data.train, "train.parquet"),
    }[part]
    folder = object_store.fetch(run.path / "questions", RECORD)
    paths = {name: folder / name / file for name in names}
    return {name: parquet.read(path) for name, path in paths.items() if path.is_file()}


def _drawn(
    by_benchmark: Mapping[str, Sequence[dict[str, Any]]], most: int, seed: str
) -> list[dict[str, Any]]:
    """Draw as many questions of each benchmark, in their order."""
    each = most // max(1, len(by_benchmark)) or 1
    chosen: list[dict[str, Any]] = []
    for name, rows in by_benchmark.items():
        drawn = random.Random(f"{seed}/{name}").sample(range(len(rows)), min(each, len(rows)))
        chosen += [rows[index] for index in sorted(drawn)]
    return chosen


Answers = defaultdict[str, list[ShownAnswer]]
"""Question id -> its answers, in the order of the run."""


def _tested(run: RunRecord, ids: Collection[str], kind: PromptKind) -> Answers:
    found: Answers = defaultdict(list)
    for stage in run.scores:
        folder = object_store.fetch(run.path / stage / "evaluation", RECORD)
        for row in parquet.rows_of_questions(folder, ids, _COLUMNS):
            if row["prompt_kind"] == kind:
                found[row["question_id"]].append(_shown(stage, "", row))
    return found


def _trained(run: RunRecord, ids: Collection[str], kind: PromptKind) -> Answers:
    """Return the teacher's first answer, and the first sample of each round."""
    found: Answers = defaultdict(list)
    if "demonstrations" in run.counts:
        folder = object_store.fetch(run.path / "demonstrations", RECORD) / "completions"
        for question, rows in _by_question(folder, ids, "cot"):
            found[question].append(_shown("teacher", _number("demonstration", rows), rows[0]))
    for name in run.counts:
        if name.endswith("/samples"):
            for question, rows in _by_question(
                object_store.fetch(run.path / name, RECORD), ids, kind
            ):
                source = name.removesuffix("/samples")
                found[question].append(_shown(source, _number("sample", rows), rows[0]))
    return found


def _by_question(
    folder: Path, ids: Collection[str], kind: PromptKind
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in parquet.rows_of_questions(folder, ids, _COLUMNS):
        if row["prompt_kind"] == kind:
            found[row["question_id"]].append(row)
    for question, rows in found.items():
        yield question, sorted(rows, key=lambda row: row["sample_index"])


def _number(what: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if len(rows) == 1:
        return what
    right = sum(row["verdict"] == "right" for row in rows)
    return f"1 of {len(rows)} {what}s, {right} {'is' if right == 1 else 'are'} right"


def _shown(source: str, note: str, row: Mapping[str, Any]) -> ShownAnswer:
    text, left_out = cut(showable(row["completion"] or "").strip(), MAX_CHARACTERS)
    if row["stop_reason"] == "length":
        note += f"{', ' if note else ''}cut off by the token limit"
    return ShownAnswer(
        source, note, row["verdict"], showable(row["extracted"] or ""), text, left_out
    )


def _example(
    row: Mapping[str, Any],
    part: Part,
    answers: Sequence[ShownAnswer],
    compared: tuple[str, str] | None,
) -> Example:
    text, left_out = cut(showable(row["text"]), MAX_CHARACTERS)
    return Example(
        id=showable(row["id"]),
        benchmark=row["benchmark"],
        part=part,
        text=text + (f" … ({left_out:,} more characters)" if left_out else ""),
        choices=tuple(zip(LETTERS, map(showable, row["choices"] or ()), strict=False)),
        reference=showable(row["reference"]),
        answers=tuple(answers),
        change=_change(answers, compared),
    )


def _change(answers: Sequence[ShownAnswer], compared: tuple[str, str] | None) -> Change:
    verdicts = {answer.source: answer.verdict == "right" for answer in answers}
    if compared is None or any(stage not in verdicts for stage in compared):
        return ""
    before, after = (verdicts[stage] for stage in compared)
    if before == after:
        return "stayed right" if after else "stayed wrong"
    return "became right" if after else "became wrong"


def _within(examples: Sequence[Example]) -> list[Example]:
    """Return the examples that fit into MAX_TOTAL_CHARACTERS, taken from the benchmarks in turn, so
    that the texts of one do not displace another."""
    by_group: defaultdict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in examples:
        by_group[example.part, example.benchmark].append(example)
    used, kept = 0, set[str]()
    longest = max(map(len, by_group.values()), default=0)
    for index in range(longest):
        for of_group in by_group.values():
            if index < len(of_group):
                used += of_group[index].characters
                if used <= MAX_TOTAL_CHARACTERS:
                    kept.add(of_group[index].id)
    return [example for example in examples if example.id in kept]
