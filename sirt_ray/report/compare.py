"""`sirt compare`: runs of any jobs side by side, on the same test questions.

Runs of one job under several seeds are one row, so that two methods under three seeds each are two.
A `Comparison` is also what a study is made of, once for each combination of its other axes.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sirt_ray.config.base import leaves_of
from sirt_ray.config.job import JobConfig
from sirt_ray.errors import DataError
from sirt_ray.report import tables
from sirt_ray.report.document import Column, Document, Grid
from sirt_ray.report.funnel import funnel
from sirt_ray.report.records import RunRecord, read_run, same_test_questions, stated
from sirt_ray.report.run import ResultsReader, domains, results_reader
from sirt_ray.report.tables import PROMPTS, Result, Results, Row, Task, shared_seeds
from sirt_ray.storage import object_store
from sirt_ray.types import PromptKind

_UNTRAINED = ("teacher", "baseline")
_ANY_SEED = 0
"""The key of runs that have one seed each, and not the same."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows that differ in their method only, and the teacher and baseline that they share."""

    setting: str
    """What distinguishes it from the study's other comparisons, such as `student small`."""
    about: str
    """Its student, teacher and domains, in sentences."""
    across: str
    """What the rows are: `method`."""
    rows: Sequence[Row[Result]]
    against: Row[Result]
    """The row that the others are compared with."""
    same_questions: bool = True
    """Whether the test questions are the same under every seed."""

    @property
    def prompts(self) -> list[PromptKind]:
        return tables.prompts(self.rows)

    def tasks(self, row: Row, domain: str, kind: PromptKind) -> list[Task]:
        """Return the tasks that are `in-domain` or `out-domain` for a row."""
        return tables.domain_tasks(row, domain, kind, tables.benchmarks(self.rows))


def comparison_grids(comparisons: Sequence[Comparison]) -> Iterator[Grid]:
    """Yield each comparison's tables of accuracies and differences. How to read them is the note of
    the first of each kind."""
    notes = {_accuracies: _accuracy_note(comparisons), _differences: _difference_note(comparisons)}
    for comparison in comparisons:
        for kind in comparison.prompts:
            for make in (_accuracies, _differences):
                grid = make(comparison, kind)
                if grid is not None:
                    yield replace(grid, note=f"{grid.note} {notes.pop(make, '')}".strip())


def _accuracies(comparison: Comparison, kind: PromptKind) -> Grid:
    """Rows down, benchmarks across, % right."""
    title = f"Accuracy, % right ± standard error, {PROMPTS[kind]}"
    note = comparison.about if comparison.setting else ""
    return _table(comparison, kind, title, comparison.rows, tables.accuracy_cell, _num_seeds, note)


def _differences(comparison: Comparison, kind: PromptKind) -> Grid | None:
    """Each row minus the one that it is compared with; None if that has nothing finished."""
    before = comparison.against
    if not before.seeds:
        return None
    after = [row for row in comparison.rows if row is not before]
    title = f"Difference to {before.label}, points, {PROMPTS[kind]}"
    cell = tables.difference_cell(before)
    return _table(comparison, kind, title, after, cell, lambda row: len(shared_seeds(before, row)))


def _table(
    comparison: Comparison,
    kind: PromptKind,
    title: str,
    rows: Sequence[Row[Result]],
    cell: tables.Cell,
    seeds: Callable[[Row], int],
    note: str = "",
) -> Grid:
    titled = f"{comparison.setting}: {title}" if comparison.setting else title
    columns = tables.benchmark_columns(comparison.rows, kind, means_of=rows)
    return tables.table(titled, comparison.across, columns, rows, cell, note, seeds)


def _num_seeds(row: Row) -> int:
    return len(row.seeds)


def _accuracy_note(comparisons: Sequence[Comparison]) -> str:
    counts = _counts(comparisons)
    parts = [
        "Each method's student that was kept last. The teacher wrote the demonstrations; the"
        " baseline is the untuned student."
    ]
    if max(counts, default=0) > 1:
        same = all(comparison.same_questions for comparison in comparisons)
        noise = (
            "The test questions are the same under every seed, so the noise of having only those is"
            " not in it."
            if same
            else "Test questions are a seed's own, so their noise is in it."
        )
        parts.append(f"Of several seeds: mean ± standard error over seeds. {noise}")
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


def _difference_note(comparisons: Sequence[Comparison]) -> str:
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


# The rows of runs


def role_of(job: JobConfig) -> str:
    """Return what a job's student is to a comparison, see `Row.role`."""
    if job.refine.rounds == 0:
        return "instruction_tuning"
    return f"{job.method or 'refined'}{' without tuning' if job.tune.skip else ''}"


def shared_domain(runs: Sequence[RunRecord]) -> Sequence[str] | None:
    """Return the benchmarks that all runs are trained on; None if they differ in that."""
    found = {tuple(run.job.in_domain) for run in runs}
    return found.pop() if len(found) == 1 else None


def untrained_rows(runs: Sequence[RunRecord], read: ResultsReader) -> Iterator[Row[Result]]:
    """Yield teacher and baseline, once for each seed; with the model's name if there are two."""
    for stage in _UNTRAINED:
        by_model: dict[str, dict[int, Results]] = {}
        for run in runs:
            if stage in run.scores:
                model = run.job.teacher.source if stage == "teacher" else run.job.student.model
                seeds = by_model.setdefault(model, {})
                if run.job.seed not in seeds:
                    seeds[run.job.seed] = read(run, stage)
        for model, seeds in by_model.items():
            label = stage if len(by_model) == 1 else f"{stage} {model}"
            yield Row(label, seeds, shared_domain(runs), len(seeds), stage)


# `sirt compare`


@dataclass(slots=True)
class Side:
    """The runs of one job."""

    runs: list[RunRecord] = field(default_factory=list)

    @property
    def label(self) -> str:
        names = [run.path.resolve().name for run in self.runs]
        if len(names) == 1:
            return names[0]
        prefix = os.path.commonprefix(names)  # noqa: RUF071  Of letters, as intended.
        return re.sub(r"[-_.]*(seed)?[-_.\d]*$", "", prefix) or names[0]

    @property
    def seeds(self) -> list[int]:
        return [run.job.seed for run in self.runs]


@dataclass(frozen=True, slots=True)
class CompareReport:
    document: Document
    comparison: Comparison


def read_sides(folders: Sequence[Path]) -> list[Side]:
    """Read folders of runs, in the order given. Raises DataError for fewer than two, for one that
    is given twice and for one that is not a run's."""
    paths = [folder.resolve() for folder in folders]
    if len(paths) < 2:
        raise DataError("a comparison needs two runs or more. `sirt report` reports a single one")
    for path, folder in zip(paths, folders, strict=True):
        if paths.count(path) > 1:
            raise DataError(f"{object_store.to_uri(folder)} is given twice. Give each run once")
    sides: list[Side] = []
    for run in map(read_run, folders):
        for side in sides:
            if stated(side.runs[0].job) == stated(run.job) and run.job.seed not in side.seeds:
                side.runs.append(run)
                break
        else:
            sides.append(Side([run]))
    if len(sides) == 1 and len(sides[0].runs) > 1:
        return [Side([run]) for run in sides[0].runs]
    return sides


def compare(sides: Sequence[Side]) -> CompareReport:
    """Compare every side with the first."""
    labels = _labels(sides)
    runs = [run for side in sides for run in side.runs]
    comparison = _comparison(sides, labels, runs)
    grids = [
        *comparison_grids([comparison]),
        _settings(sides, labels),
        funnel(_counts_by_run(sides, labels)),
    ]
    document = Document(
        f"Comparison of {', '.join(labels)}",
        _paragraphs(sides, labels, runs),
        [grid for grid in grids if grid.rows],
    )
    return CompareReport(document, comparison)


def _labels(sides: Sequence[Side]) -> list[str]:
    labels = [side.label for side in sides]
    if len(set(labels)) == len(labels):
        return labels
    return [object_store.to_uri(side.runs[0].path) for side in sides]


def _comparison(
    sides: Sequence[Side], labels: Sequence[str], runs: Sequence[RunRecord]
) -> Comparison:
    read = results_reader()
    one_seed_each = _one_seed_each(sides)
    rows: list[Row[Result]] = []
    for label, side in zip(labels, sides, strict=True):
        job = side.runs[0].job
        seeds = {
            _ANY_SEED if one_seed_each else run.job.seed: read(run, run.kept)
            for run in side.runs
            if run.kept in run.scores
        }
        rows.append(Row(label, seeds, job.in_domain, len(side.runs), role_of(job)))
    untrained = list(untrained_rows(runs, read))
    if one_seed_each:
        untrained = [
            replace(row, seeds={_ANY_SEED: next(iter(row.seeds.values()))}, planned=1)
            for row in untrained
        ]
    return Comparison(
        "", _about(runs), "run", [*untrained, *rows], rows[0], same_test_questions(runs)
    )


def _one_seed_each(sides: Sequence[Side]) -> bool:
    """Return whether the runs have one seed each, and not the same: they are compared nevertheless,
    on the questions that they share."""
    return all(len(side.runs) == 1 for side in sides) and len({s.seeds[0] for s in sides}) > 1


def _about(runs: Sequence[RunRecord]) -> str:
    in_domain = shared_domain(runs)
    if in_domain is None:
        return "The runs are trained on different tasks."
    return domains(runs[0].job, in_domain)


def _paragraphs(
    sides: Sequence[Side], labels: Sequence[str], runs: Sequence[RunRecord]
) -> list[str]:
    found = [_about(runs)]
    for label, side in zip(labels, sides, strict=True):
        job, kept = side.runs[0].job, ", ".join(dict.fromkeys(run.kept for run in side.runs))
        method = f", method {job.method}" if job.method else ""
        seeds = f"{'seed' if len(side.runs) == 1 else 'seeds'} {', '.join(map(str, side.seeds))}"
        found.append(
            f"{label}: student {job.student.model}, teacher {job.teacher.source}{method}, {seeds};"
            f" kept {kept}."
        )
    found += [
        f"{object_store.to_uri(run.path)} is not finished: {', '.join(run.missing)}. What it has is"
        " compared."
        for run in runs
        if run.missing
    ]
    if _one_seed_each(sides):
        found.append(
            "The runs have different seeds: what a seed changes is part of every difference."
        )
    return found


def _counts_by_run(sides: Sequence[Side], labels: Sequence[str]) -> dict[str, Any]:
    return {
        label if len(side.runs) == 1 else f"{label}, {run.label}": run.counts
        for label, side in zip(labels, sides, strict=True)
        for run in side.runs
    }


def _settings(sides: Sequence[Side], labels: Sequence[str]) -> Grid:
    leaves = [dict(leaves_of(stated(side.runs[0].job))) for side in sides]
    names = list(dict.fromkeys(name for of_side in leaves for name in of_side))
    rows = [
        [name, *(str(of_side.get(name, "-")) for of_side in leaves)]
        for name in names
        if len({str(of_side.get(name)) for of_side in leaves}) > 1
    ]
    return Grid("Settings that differ", "setting", [Column(label) for label in labels], rows)
