"""The report of a study: for each combination of its other axes, tasks x methods."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

from sirt_ray.config.job import JobConfig
from sirt_ray.report.answers import asked_in, read_right
from sirt_ray.report.claims import orderings
from sirt_ray.report.comparison import (
    Comparison,
    Right,
    Row,
    accuracies,
    accuracy_note,
    difference_note,
    differences,
)
from sirt_ray.report.document import Document, Grid
from sirt_ray.report.runs import RunRecord, same_test_questions
from sirt_ray.report.studies import State, StudyRecord, TrialRecord
from sirt_ray.types import PromptKind

Reader = Callable[[RunRecord, str], Right]
"""A run and one of its stages -> its answers."""

_UNTRAINED = ("teacher", "baseline")
_MEANT: Mapping[State, str] = {
    "failed": "Failed",
    "unreadable": "Unreadable",
    "unfinished": "Not finished",
    "not begun": "Not begun",
    "of another grid": "Of another grid than the study has now",
}


def study_report(study: StudyRecord) -> Document:
    """What a study has come to. Its tables are made of finished cells; every other cell is named
    with its state."""
    found = list(_comparisons(study))
    return Document(
        f"Report of the study {study.name}",
        _paragraphs(study, found),
        [*_tables(found), *orderings(found)],
    )


def _tables(comparisons: Sequence[Comparison]) -> Iterator[Grid]:
    """How to read them stands under the first of each kind."""
    notes = {accuracies: accuracy_note(comparisons), differences: difference_note(comparisons)}
    for comparison in comparisons:
        for kind in comparison.prompts:
            for make in (accuracies, differences):
                grid = make(comparison, kind)
                if grid is not None:
                    yield replace(grid, note=f"{grid.note} {notes.pop(make, '')}".strip())


def _comparisons(study: StudyRecord) -> Iterator[Comparison]:
    """In the order of the axes; combinations without any cell are none of the study's."""
    read = reader()
    named = [axis for axis in study.apart if len(study.axes[axis]) > 1]
    by_combination: defaultdict[tuple[str, ...], list[TrialRecord]] = defaultdict(list)
    for cell in study.cells:
        if cell.state != "of another grid":
            by_combination[tuple(cell.labels[axis] for axis in study.apart)].append(cell)
    known = list(product(*(study.axes[axis] for axis in study.apart)))
    order = {labels: place for place, labels in enumerate(known)}
    for labels in sorted(by_combination, key=lambda labels: order.get(labels, len(order))):
        cells = by_combination[labels]
        if any(cell.state == "finished" for cell in cells):
            of_axis = dict(zip(study.apart, labels, strict=True))
            setting = ", ".join(f"{axis} {of_axis[axis]}" for axis in named)
            yield _comparison(study, setting, cells, read)


def _comparison(
    study: StudyRecord, setting: str, cells: Sequence[TrialRecord], read: Reader
) -> Comparison:
    by_label: dict[str, list[TrialRecord]] = {}
    if study.across is not None:
        by_label = {label: [] for label in study.axes[study.across]}
    for cell in cells:
        label = "student" if study.across is None else cell.labels[study.across]
        by_label.setdefault(label, []).append(cell)
    runs = [cell.run for cell in cells if cell.state == "finished" and cell.run is not None]
    in_domain = {tuple(run.job.in_domain) for run in runs}
    shared = in_domain.pop() if len(in_domain) == 1 else None
    rows = [_trained(label, found, shared, read) for label, found in by_label.items() if found]
    tuned = [row.label for row in rows if row.role == "instruction_tuning"]
    return Comparison(
        setting,
        _about(runs[0].job, shared),
        study.across or "model",
        [*untrained(runs, shared, read), *rows],
        tuned[0] if tuned else rows[0].label,
        same_test_questions(runs),
    )


def _trained(
    label: str, cells: Sequence[TrialRecord], in_domain: Sequence[str] | None, read: Reader
) -> Row:
    jobs = [cell.run.job for cell in cells if cell.run is not None]
    seeds = {
        cell.run.job.seed: read(cell.run, cell.run.kept)
        for cell in cells
        if cell.state == "finished" and cell.run is not None
    }
    if not jobs:
        return Row(label, label, seeds, len(cells), in_domain)
    return Row(label, role_of(jobs[0]), seeds, len(cells), jobs[0].in_domain)


def role_of(job: JobConfig) -> str:
    if job.refine.rounds == 0:
        return "instruction_tuning"
    return f"{job.method or 'refined'}{' without tuning' if job.tune.skip else ''}"


def untrained(
    runs: Sequence[RunRecord], in_domain: Sequence[str] | None, read: Reader
) -> Iterator[Row]:
    """Teacher and baseline, once for each seed; the model's name with it where there are two."""
    for stage in _UNTRAINED:
        by_model: dict[str, dict[int, Right]] = {}
        for run in runs:
            if stage in run.scores:
                model = run.job.teacher.source if stage == "teacher" else run.job.student.model
                seeds = by_model.setdefault(model, {})
                if run.job.seed not in seeds:
                    seeds[run.job.seed] = read(run, stage)
        for model, seeds in by_model.items():
            label = stage if len(by_model) == 1 else f"{stage} {model}"
            yield Row(label, stage, seeds, len(seeds), in_domain)


def reader() -> Reader:
    """Reads what cells have in common once."""

    @cache
    def asked(questions: Path, benchmarks: tuple[str, ...]) -> Mapping[str, Sequence[str]]:
        return asked_in(questions, benchmarks)

    @cache
    def right(
        evaluation: Path,
        questions: Path,
        benchmarks: tuple[str, ...],
        prompts: tuple[PromptKind, ...],
    ) -> Right:
        return read_right(evaluation, asked(questions, benchmarks), prompts)

    def read(run: RunRecord, stage: str) -> Right:
        return right(
            (run.path / stage / "evaluation").resolve(),
            (run.path / "questions").resolve(),
            tuple(run.job.data.evaluate),
            tuple(run.job.evaluation.prompts),
        )

    return read


def _about(job: JobConfig, in_domain: Sequence[str] | None) -> str:
    models = f"Student {job.student.model}, teacher {job.teacher.source}."
    if in_domain is None:
        return f"{models} Rows are trained on different tasks."
    far = [name for name in job.data.evaluate if name not in in_domain]
    return (
        f"{models} In-domain, trained on: {', '.join(in_domain)}. Out-domain:"
        f" {', '.join(far) or 'none'}."
    )


def _paragraphs(study: StudyRecord, comparisons: Sequence[Comparison]) -> list[str]:
    spanned = [cell.labels for cell in study.cells if cell.state != "of another grid"]
    axes = " x ".join(
        f"{len({labels[axis] for labels in spanned})} of {axis}" for axis in study.axes
    )
    by_state: defaultdict[State, list[TrialRecord]] = defaultdict(list)
    for cell in study.cells:
        by_state[cell.state].append(cell)
    finished = len(by_state["finished"])
    found = [f"{finished} of {len(study.cells)} cells are finished ({axes})."]
    found += [comparison.about for comparison in comparisons if not comparison.setting]
    for state, meant in _MEANT.items():
        by_reason: defaultdict[str, list[str]] = defaultdict(list)
        for cell in by_state[state]:
            by_reason[cell.why].append(cell.name)
        for why, names in by_reason.items():
            found.append(f"{meant}: {', '.join(names)}{f': {why}' if why else ''}")
    if len(study.cells) > finished:
        found.append("`sirt run` with the study's file goes on with what is not finished.")
    return found
