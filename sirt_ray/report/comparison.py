"""Methods side by side: what students answered to the same test questions -> accuracies and
differences, tasks across, with means over in-domain and out-domain tasks.

A cell's error bar is over seeds where its row has several, and over questions where it has one.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from sirt_ray.core.scoring import score_of
from sirt_ray.core.statistics import MeanPaired, Paired, mean_paired, paired
from sirt_ray.report.answers import Task
from sirt_ray.report.document import Column, Grid
from sirt_ray.report.evidence import shown_difference, shown_score
from sirt_ray.types import PromptKind, Score

Right = Mapping[Task, Mapping[str, bool]]
"""Task -> question id -> right?"""

PROMPTS: Mapping[PromptKind, str] = {"cot": "CoT prompts", "plain": "plain prompts"}


@dataclass(frozen=True, slots=True)
class Row:
    """A method's student, the teacher or the untuned student."""

    label: str
    role: str
    """What it is, whatever it is called: `teacher`, `baseline`, `instruction_tuning`, or the job's
    method."""
    seeds: Mapping[int, Right]
    """Seed -> answers, of what is finished."""
    planned: int
    """Seeds that it has when all is finished."""
    in_domain: Collection[str] | None
    """Benchmarks it is trained on, or of a teacher or baseline those that all rows are trained on;
    None where that is not known, or rows differ in it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows that differ in their method alone, and the teacher and baseline they have in common."""

    setting: str
    """What sets it apart from the study's other comparisons, such as `student small`."""
    about: str
    """Its student, teacher and domains, in sentences."""
    across: str
    """What the rows are: `method`."""
    rows: Sequence[Row]
    against: str
    """Label of the row that the others are compared with."""
    same_questions: bool = True
    """All seeds were asked the same test questions."""

    @property
    def prompts(self) -> list[PromptKind]:
        asked = {kind for row in self.rows for right in row.seeds.values() for _, kind in right}
        return [kind for kind in PROMPTS if kind in asked]

    @property
    def benchmarks(self) -> list[str]:
        """In-domain ones first, then those that are in-domain in some rows alone."""
        found = dict.fromkeys(
            name for row in self.rows for right in row.seeds.values() for name, _ in right
        )
        return sorted(found, key=lambda name: _DOMAINS.index(self.domain(name)))

    def domain(self, benchmark: str) -> str:
        known = [row.in_domain for row in self.rows if row.in_domain is not None]
        within = [benchmark in in_domain for in_domain in known]
        return _DOMAINS[0] if all(within) else _DOMAINS[1] if any(within) else _DOMAINS[2]

    def row(self, label: str) -> Row:
        return next(row for row in self.rows if row.label == label)

    def tasks(self, row: Row, domain: str) -> list[str]:
        """The benchmarks that are `in-domain` or `out-domain` for a row."""
        if row.in_domain is None:
            return []
        within = domain == "in-domain"
        return [name for name in self.benchmarks if (name in row.in_domain) == within]


_DOMAINS = ("in-domain", "in-domain: *", "out-domain")


def scores(row: Row, benchmarks: Sequence[str], kind: PromptKind) -> list[Score]:
    """Of each seed that was asked all of them: the accuracy, or its mean over several benchmarks,
    each counting the same."""
    found: list[Score] = []
    for right in row.seeds.values():
        if benchmarks and all((name, kind) in right for name in benchmarks):
            answers = [right[name, kind].values() for name in benchmarks]
            of_tasks = [score_of(sum(values), len(values)) for values in answers]
            stderr = math.hypot(*(score.stderr for score in of_tasks)) / len(of_tasks)
            accuracy = fmean(score.accuracy for score in of_tasks)
            found.append(Score(accuracy, stderr, sum(score.n for score in of_tasks)))
    return found


def compared(
    before: Row, after: Row, benchmarks: Sequence[str], kind: PromptKind
) -> list[Paired | MeanPaired]:
    """`after` minus `before` under each seed that both have, on the same questions; a seed under
    which they were asked different ones is left out."""
    found: list[Paired | MeanPaired] = []
    for seed in shared_seeds(before, after):
        old, new = before.seeds[seed], after.seeds[seed]
        tasks: list[Task] = [(name, kind) for name in benchmarks]
        if tasks and all(_same_questions(old.get(task), new.get(task)) for task in tasks):
            each = [paired(old[task], new[task]) for task in tasks]
            found.append(each[0] if len(each) == 1 else mean_paired(each))
    return found


def shared_seeds(before: Row, after: Row) -> list[int]:
    """The seeds under which both are finished."""
    return [seed for seed in after.seeds if seed in before.seeds]


def _same_questions(old: Mapping[str, bool] | None, new: Mapping[str, bool] | None) -> bool:
    return bool(old and new and old.keys() == new.keys())


def accuracies(comparison: Comparison, kind: PromptKind) -> Grid:
    """Rows down, tasks across, % right."""

    def cell(row: Row, benchmarks: Sequence[str]) -> str:
        found = scores(row, benchmarks, kind)
        return shown_score(found) if found and len(found) == len(row.seeds) else "-"

    shown = [(row, len(row.seeds)) for row in comparison.rows]
    title = f"Accuracy, % right ± standard error, {PROMPTS[kind]}"
    return _grid(comparison, title, shown, cell, comparison.about if comparison.setting else "")


def differences(comparison: Comparison, kind: PromptKind) -> Grid | None:
    """Each row minus the one that is compared with; None where that has nothing finished."""
    before = comparison.row(comparison.against)
    if not before.seeds:
        return None

    def cell(row: Row, benchmarks: Sequence[str]) -> str:
        found = compared(before, row, benchmarks, kind)
        return shown_difference(found) if found and len(found) == seeds[row.label] else "-"

    after = [row for row in comparison.rows if row.label != before.label]
    seeds = {row.label: len(shared_seeds(before, row)) for row in after}
    title = f"Difference to {before.label}, points, {PROMPTS[kind]}"
    return _grid(comparison, title, [(row, seeds[row.label]) for row in after], cell)


def accuracy_note(comparisons: Sequence[Comparison]) -> str:
    """How to read their accuracies."""
    counts = _counts(comparisons)
    parts = [
        "Each method's student that was kept last. The teacher wrote the demonstrations; the"
        " baseline is the untuned student."
    ]
    if max(counts, default=0) > 1:
        same = all(comparison.same_questions for comparison in comparisons)
        asked = (
            "The test questions are the same under every seed, so the noise of having only those is"
            " not in it."
            if same
            else "Test questions are a seed's own, so their noise is in it."
        )
        parts.append(f"Of several seeds: mean ± standard error over seeds. {asked}")
    if 1 in counts:
        parts.append(
            "Of one seed: ± is the binomial error of having so many questions; what a seed changes"
            " is not in it."
        )
    parts.append(
        "A mean is over tasks, each counting the same. A dash: no seed is finished, the questions"
        " are not the same under all, or the rows have no common domain."
    )
    return " ".join(parts)


def difference_note(comparisons: Sequence[Comparison]) -> str:
    """How to read their differences."""
    counts = _counts(comparisons)
    parts: list[str] = []
    if max(counts, default=0) > 1:
        parts.append(
            "Of several seeds: mean of each seed's own difference on the same questions ± standard"
            " error over seeds, and the 95 % interval by Student's t."
        )
    if 1 in counts:
        parts.append(
            "Of one seed: the difference on the same questions, its 95 % interval by paired"
            " bootstrap over questions, and p of McNemar's exact test."
        )
    return " ".join([*parts, "Among many comparisons, some look sure by chance."])


def _counts(comparisons: Sequence[Comparison]) -> set[int]:
    return {len(row.seeds) for comparison in comparisons for row in comparison.rows}


# One grid of both


def _grid(
    comparison: Comparison,
    title: str,
    rows: Sequence[tuple[Row, int]],
    cell: Callable[[Row, Sequence[str]], str],
    note: str = "",
) -> Grid:
    columns = [Column("seeds")]
    shown = [[row.label, _seeds(seeds, row.planned)] for row, seeds in rows]
    for domain in _DOMAINS:
        names = [name for name in comparison.benchmarks if comparison.domain(name) == domain]
        for name in names:
            columns.append(Column(name, domain))
            for cells, (row, _) in zip(shown, rows, strict=True):
                starred = domain == _DOMAINS[1] and name in (row.in_domain or ())
                cells.append(f"{cell(row, [name])}{' *' if starred else ''}")
    for domain in ("in-domain", "out-domain"):
        of_rows = [comparison.tasks(row, domain) for row, _ in rows]
        if max(map(len, of_rows), default=0) > 1:
            columns.append(Column("mean", domain))
            for cells, (row, _), tasks in zip(shown, rows, of_rows, strict=True):
                cells.append(cell(row, tasks))
    titled = f"{comparison.setting}: {title}" if comparison.setting else title
    return Grid(titled, comparison.across, columns, shown, note)


def _seeds(found: int, planned: int) -> str:
    return str(found) if found == planned else f"{found} of {planned}"
