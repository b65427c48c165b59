"""Results on test questions, and every table of accuracies and differences that is made of them.

A `Row` is what one row of a table compares (a stage of a run, or a method of a study): seed -> task
-> result. The reports differ in their rows and columns alone: of a run or its seeds the rows are
stages and each task is a column (`task_columns`), of comparisons and studies the rows are methods
and the columns benchmarks with their means (`benchmark_columns`).

The error of a row with one seed is over questions, of a row with several seeds over those.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Generic, TypeVar

from rich.table import Table

from sirt_ray.core.scoring import score_of
from sirt_ray.core.statistics import MeanPaired, Paired, mean_paired, over_seeds, paired
from sirt_ray.report.document import Column, Grid, terminal_table
from sirt_ray.types import PromptKind, Score, Scores

TUNED = "round_00"
"""The stage that refinement is compared with: instruction tuning."""
PROMPTS: Mapping[PromptKind, str] = {"cot": "CoT prompts", "plain": "plain prompts"}
TRIGGERS: Mapping[PromptKind, str] = {"cot": "with the trigger", "plain": "without the trigger"}
DOMAINS = ("in-domain", "out-domain")
_MIXED = "in-domain: *"
"""Of a benchmark that is in-domain in some rows only, which are starred."""
_MAX_BENCHMARKS = 4
"""In one table of `scores_tables`: as many as fit in a terminal of 80 columns."""

Task = tuple[str, PromptKind]
"""A benchmark, and the kind of prompt that its questions are put into."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How one model's answers to one task look."""

    tokens: float | None
    """Mean length of an answer, with its end-of-sequence token; None if the tokens are not known,
    as of an endpoint."""
    with_chain: float
    """Share of answers with a chain of thought, see `run.has_chain_of_thought`."""
    unparseable: float
    """Share of answers without a readable final answer."""
    truncated: float
    """Share of answers that the token limit cut off."""
    repeated: float
    """Mean share of an answer's 4-grams that it has had before, see `core.repetition`."""


@dataclass(frozen=True, slots=True)
class Result:
    """One model's result on the test questions of one task."""

    score: Score
    right: Mapping[str, bool] = field(default_factory=dict)
    """Question id -> whether the answer is right; empty if only the score is known."""
    form: AnswerForm | None = None
    """None if it was not read."""

    @classmethod
    def of(cls, right: Mapping[str, bool], form: AnswerForm | None = None) -> "Result":
        return cls(score_of(sum(right.values()), len(right)), right, form)


Results = Mapping[Task, Result]
"""Of one model."""


@dataclass(frozen=True, slots=True)
class Row(Generic[Value]):
    """What one row of a table compares, under each seed."""

    label: str
    seeds: Mapping[int, Mapping[Task, Value]]
    """Seed -> task -> value, of the runs that have it."""
    in_domain: Collection[str] | None
    """Benchmarks that it is trained on, or for a teacher or baseline those that all rows are
    trained on; None if that is not known, or if the rows differ in it."""
    planned: int = 0
    """Seeds that it has when all runs are finished."""
    role: str = ""
    """`teacher`, `baseline`, `instruction_tuning`, or the job's method, whatever its label is."""


@dataclass(frozen=True, slots=True)
class TaskColumn:
    """A column of a table, and the tasks that it is the mean of."""

    column: Column
    tasks: Callable[[Row], Sequence[Task]]


Cell = Callable[[Row, Sequence[Task]], str]
"""Row and tasks of a column -> text; `-` if a seed of the row has no value."""


# Numbers


def scores(row: Row[Result], tasks: Sequence[Task]) -> list[Score]:
    """Return the accuracy of each seed that has all `tasks`: the mean over them, each counting the
    same."""
    found: list[Score] = []
    for results in row.seeds.values():
        if tasks and all(task in results for task in tasks):
            each = [results[task].score for task in tasks]
            stderr = math.hypot(*(score.stderr for score in each)) / len(each)
            accuracy = fmean(score.accuracy for score in each)
            found.append(Score(accuracy, stderr, sum(score.n for score in each)))
    return found


def shared_seeds(before: Row, after: Row) -> list[int]:
    """Return the seeds that both rows have."""
    return [seed for seed in after.seeds if seed in before.seeds]


def compare_rows(
    before: Row[Result], after: Row[Result], tasks: Sequence[Task]
) -> list[Paired | MeanPaired]:
    """Compare `after` with `before` on the same questions, under each seed that both have. A seed
    under which their questions differ is left out."""
    found: list[Paired | MeanPaired] = []
    for seed in shared_seeds(before, after):
        old, new = before.seeds[seed], after.seeds[seed]
        if tasks and all(_same_questions(old.get(task), new.get(task)) for task in tasks):
            each = [paired(old[task].right, new[task].right) for task in tasks]
            found.append(each[0] if len(each) == 1 else mean_paired(each))
    return found


def _same_questions(old: Result | None, new: Result | None) -> bool:
    return bool(old and new and old.right and old.right.keys() == new.right.keys())


def difference_interval(found: Sequence[Paired | MeanPaired]) -> tuple[float, float, float]:
    """Return a difference and its 95 % interval, in points: over the questions of one seed, or over
    several seeds by Student's t."""
    points = [100 * comparison.difference for comparison in found]
    if len(found) == 1:
        return points[0], 100 * found[0].low, 100 * found[0].high
    spread = over_seeds(points)
    return spread.mean, spread.low, spread.high


# Cells


def format_score(found: Sequence[Score]) -> str:
    """Format an accuracy of one seed, or its mean over several, with its standard error in %."""
    if len(found) == 1:
        return f"{100 * found[0].accuracy:.1f} ± {100 * found[0].stderr:.1f}"
    return format_mean([100 * score.accuracy for score in found])


def format_mean(values: Sequence[float | None], sign: str = "") -> str:
    """Format one value, or the mean of several ± its standard error; `-` if one is None."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    if len(known) == 1:
        return f"{known[0]:{sign}.1f}"
    spread = over_seeds(known)
    return f"{spread.mean:{sign}.1f} ± {spread.stderr:.1f}"


def format_difference(found: Sequence[Paired | MeanPaired]) -> str:
    """Format a difference with its interval, and for one seed and one benchmark its p-value."""
    _, low, high = difference_interval(found)
    points = format_mean([100 * comparison.difference for comparison in found], "+")
    shown = f"{points}\n[{low:+.1f}, {high:+.1f}]"
    if len(found) > 1 or isinstance(found[0], MeanPaired):
        return shown
    p = found[0].p_value
    return f"{shown}\np {'<0.001' if p < 0.001 else f'{p:.3f}'}"


def accuracy_cell(row: Row[Result], tasks: Sequence[Task]) -> str:
    found = scores(row, tasks)
    return format_score(found) if found and len(found) == len(row.seeds) else "-"


def difference_cell(before: Row[Result]) -> Cell:
    """Return the cell of a table of differences to `before`."""

    def cell(row: Row[Result], tasks: Sequence[Task]) -> str:
        found = compare_rows(before, row, tasks)
        every_seed = len(found) == len(shared_seeds(before, row))
        return format_difference(found) if found and every_seed else "-"

    return cell


def mean_cell(value_of: Callable[[Value], float | None], sign: str = "") -> Cell:
    """Return the cell of a table with another figure of each task than its accuracy."""

    def cell(row: Row[Value], tasks: Sequence[Task]) -> str:
        (task,) = tasks
        found = [value_of(values[task]) for values in row.seeds.values() if task in values]
        return format_mean(found, sign) if found and len(found) == len(row.seeds) else "-"

    return cell


# Columns


def prompts(rows: Sequence[Row]) -> list[PromptKind]:
    """Return the kinds of prompt that the rows have results of."""
    known = {kind for row in rows for values in row.seeds.values() for _, kind in values}
    return [kind for kind in PROMPTS if kind in known]


def benchmarks(rows: Sequence[Row]) -> list[str]:
    """Return the rows' benchmarks: in-domain ones first, then those that are in-domain in some rows
    only."""
    names = dict.fromkeys(
        name for row in rows for values in row.seeds.values() for name, _ in values
    )
    return sorted(names, key=lambda name: _order(name, rows))


def domain(benchmark: str, rows: Sequence[Row]) -> str:
    """Return `in-domain`, `out-domain`, or `in-domain: *` where rows differ in it."""
    known = [benchmark in row.in_domain for row in rows if row.in_domain is not None]
    return DOMAINS[0] if all(known) else _MIXED if any(known) else DOMAINS[1]


def _order(benchmark: str, rows: Sequence[Row]) -> int:
    return (DOMAINS[0], _MIXED, DOMAINS[1]).index(domain(benchmark, rows))


def domain_tasks(row: Row, domain_name: str, kind: PromptKind, names: Sequence[str]) -> list[Task]:
    """Return the tasks of the benchmarks `names` that are `in-domain` or `out-domain` for a row."""
    if row.in_domain is None:
        return []
    within = domain_name == "in-domain"
    return [(name, kind) for name in names if (name in row.in_domain) == within]


def task_columns(rows: Sequence[Row]) -> list[TaskColumn]:
    """Return a column for each task, of in-domain benchmarks first."""
    tasks = dict.fromkeys(task for row in rows for values in row.seeds.values() for task in values)
    return [
        _fixed(Column(f"{name}, {kind}", domain(name, rows)), (name, kind))
        for name, kind in sorted(tasks, key=lambda task: _order(task[0], rows))
    ]


def benchmark_columns(
    rows: Sequence[Row], kind: PromptKind, means_of: Sequence[Row] = ()
) -> list[TaskColumn]:
    """Return a column for each benchmark, then for each domain of which one of `means_of` has
    several benchmarks a column with their mean."""
    names = benchmarks(rows)
    columns = [_fixed(Column(name, domain(name, rows)), (name, kind)) for name in names]
    for domain_name in DOMAINS:

        def tasks(row: Row, domain_name: str = domain_name) -> Sequence[Task]:
            return domain_tasks(row, domain_name, kind, names)

        if any(len(tasks(row)) > 1 for row in means_of):
            columns.append(TaskColumn(Column("mean", domain_name), tasks))
    return columns


def _fixed(column: Column, task: Task) -> TaskColumn:
    return TaskColumn(column, lambda row: [task])


# Tables


def table(
    title: str,
    corner: str,
    columns: Sequence[TaskColumn],
    rows: Sequence[Row],
    cell: Cell,
    note: str = "",
    seeds: Callable[[Row], int] | None = None,
) -> Grid:
    """Return a table of `rows`; with `seeds`, its first column says how many each row has."""

    def cells(row: Row) -> list[str]:
        found = [row.label]
        if seeds is not None:
            number = seeds(row)
            found.append(str(number) if number == row.planned else f"{number} of {row.planned}")
        for column in columns:
            tasks = column.tasks(row)
            starred = column.column.note == _MIXED and tasks[0][0] in (row.in_domain or ())
            found.append(f"{cell(row, tasks)}{' *' if starred else ''}")
        return found

    heads = [column.column for column in columns]
    if seeds is not None:
        heads.insert(0, Column("seeds"))
    return Grid(title, corner, heads, [cells(row) for row in rows], note)


def score_results(found: Scores) -> Results:
    """Return results of which only the scores are known."""
    return {
        (name, kind): Result(score)
        for name, kinds in found.items()
        for kind, score in kinds.items()
    }


def scores_tables(
    stages: Mapping[str, Scores],
    in_domain: Collection[str] | None,
    rolled_back: Collection[str] = (),
) -> list[Table]:
    """Return tables for a terminal, for each kind of prompt: stages down, benchmarks across.
    `in_domain` None: the scores are of a model that no run has trained."""
    rows = [
        Row(f"{stage}\n(rolled back)" if stage in rolled_back else stage, {0: found}, in_domain)
        for stage, found in zip(stages, map(score_results, stages.values()), strict=True)
    ]
    tables: list[Table] = []
    for kind in prompts(rows):
        columns = benchmark_columns(rows, kind)
        if in_domain is None:
            columns = [TaskColumn(Column(one.column.name), one.tasks) for one in columns]
        title = f"{TRIGGERS[kind].capitalize()}, % right ± standard error"
        for first in range(0, len(columns), _MAX_BENCHMARKS):
            part = columns[first : first + _MAX_BENCHMARKS]
            tables.append(terminal_table(table(title, "stage", part, rows, accuracy_cell)))
    return tables
