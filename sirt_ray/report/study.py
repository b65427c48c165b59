"""The report of a study: its trials as far as each has come, and for each combination of the axes
that are not compared, tasks x methods; then the orderings that the paper claims."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from sirt_ray.config.job import JobConfig
from sirt_ray.config.study import STATES
from sirt_ray.errors import DataError, SirtError
from sirt_ray.report.compare import (
    Comparison,
    comparison_grids,
    role_of,
    shared_domain,
    untrained_rows,
)
from sirt_ray.report.document import Column, Document, Grid
from sirt_ray.report.records import RunRecord, read_run, same_test_questions
from sirt_ray.report.run import ResultsReader, domains, results_reader
from sirt_ray.report.tables import (
    DOMAINS,
    Result,
    Row,
    compare_rows,
    difference_interval,
    shared_seeds,
)

State = Literal["finished", "unfinished", "failed", "not started", "unreadable", "of another grid"]


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial as far as it has come."""

    name: str
    labels: Mapping[str, str]
    """Axis -> label."""
    state: State
    why: str = ""
    """What an unfinished trial lacks; the error of a failed or unreadable one."""
    run: RunRecord | None = None
    """None if there is no readable one."""


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study as far as it has come."""

    name: str
    axes: Mapping[str, Sequence[str]]
    """Axis -> its labels."""
    trials: Sequence[TrialRecord]
    across: str | None
    """The axis whose labels are compared: that of the methods, or if all trials have one method the
    last that leaves the student and the teacher as they are."""
    seeds: str | None
    """The axis that changes nothing but the seed."""

    @property
    def apart(self) -> list[str]:
        """The other axes: each combination of their labels is a comparison of its own."""
        return [axis for axis in self.axes if axis not in (self.across, self.seeds)]


class _Trial(BaseModel):
    state: str
    error: str | None = None
    labels: dict[str, str]


class _Study(BaseModel):
    """`study.json`."""

    study: str
    axes: dict[str, list[str]]
    cells: dict[str, _Trial]


def is_study(folder: Path) -> bool:
    """Return whether a folder is a study's."""
    return (folder / STATES).is_file()


def read_study(folder: Path) -> StudyRecord:
    """Read a study's trials; the record of one that cannot be read says why. Raises DataError if
    `study.json` itself cannot be read."""
    path = folder / STATES
    try:
        study = _Study.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path} cannot be read as a study's record: {_first(error)}. Move it away and run"
            " `sirt run` with the study's file, which writes it again and keeps what is finished"
        ) from error
    trials = [
        _read(folder, name, trial, of_grid=trial.labels.keys() == study.axes.keys())
        for name, trial in study.cells.items()
    ]
    across, seeds = _roles(list(study.axes), trials)
    return StudyRecord(study.study, study.axes, trials, across, seeds)


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        return f"{key}: {problem['msg']}" if key else problem["msg"]
    return str(error)


def _read(folder: Path, name: str, trial: _Trial, of_grid: bool) -> TrialRecord:
    def record(state: State, why: str = "", run: RunRecord | None = None) -> TrialRecord:
        return TrialRecord(name, trial.labels, state, " ".join(why.split("\n", 1)[0].split()), run)

    if not of_grid:
        return record("of another grid")
    if Path(name).name != name or name == "..":
        return record("unreadable", "its name is not that of a folder in the study's")
    started = (folder / name / "config.yaml").is_file()
    if not started and trial.state == "missing":
        return record("not started")
    try:
        run = read_run(folder / name) if started else None
    except SirtError as error:
        return record("unreadable", str(error))
    if trial.state == "failed":
        return record("failed", trial.error or "no reason is recorded", run)
    if run is None:
        return record("unreadable", "its folder is gone or was emptied")
    if run.missing:
        return record("unfinished", ", ".join(run.missing), run)
    return record("finished", run=run)


def _roles(axes: Sequence[str], trials: Sequence[TrialRecord]) -> tuple[str | None, str | None]:
    """Return the axis that is compared across, and the one of the seeds. An axis of which no two
    trials have started is known by its name only."""
    jobs = [
        (
            trial.labels,
            trial.run.job.model_dump(
                mode="json", exclude={"name", "output", "resources", "tracking"}
            ),
        )
        for trial in trials
        if trial.run is not None
    ]
    varied = {axis: _varied(axis, jobs) for axis in axes}
    seeds = next((axis for axis in axes if varied[axis] == {"seed"}), None)
    if seeds is None and "seed" in axes and not varied["seed"]:
        seeds = "seed"
    across = next((axis for axis in axes if "method" in varied[axis]), None)
    if across is None and "method" in axes:
        across = "method"
    if across is None:
        same_models = [
            axis for axis in axes if varied[axis] and not varied[axis] & {"student", "teacher"}
        ]
        across = next((axis for axis in reversed(same_models) if axis != seeds), None)
    return across, seeds


def _varied(axis: str, jobs: Sequence[tuple[Mapping[str, str], Mapping[str, Any]]]) -> set[str]:
    """Return the sections of the job that differ between trials with the same labels on all other
    axes."""
    alike: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for labels, job in jobs:
        others = {other: label for other, label in labels.items() if other != axis}
        alike[json.dumps(others, sort_keys=True)].append(job)
    return {
        section
        for first, *others in alike.values()
        for other in others
        for section in first
        if first[section] != other[section]
    }


# The report


_STATES: Mapping[State, str] = {
    "failed": "Failed",
    "unreadable": "Unreadable",
    "unfinished": "Not finished",
    "not started": "Not started",
    "of another grid": "Of another grid than the study has now",
}


def report_study(study: StudyRecord) -> Document:
    """Return the report of a study. Its tables are made of finished trials; every other trial is
    named with its state."""
    found = list(_comparisons(study))
    return Document(
        f"Report of the study {study.name}",
        _paragraphs(study, found),
        [*comparison_grids(found), *orderings(found)],
    )


def _comparisons(study: StudyRecord) -> Iterator[Comparison]:
    """Yield the comparisons in the order of the axes, for each combination of labels that has a
    finished trial."""
    read = results_reader()
    named = [axis for axis in study.apart if len(study.axes[axis]) > 1]
    by_combination: defaultdict[tuple[str, ...], list[TrialRecord]] = defaultdict(list)
    for trial in study.trials:
        if trial.state != "of another grid":
            by_combination[tuple(trial.labels[axis] for axis in study.apart)].append(trial)
    known = list(product(*(study.axes[axis] for axis in study.apart)))
    order = {labels: position for position, labels in enumerate(known)}
    for labels in sorted(by_combination, key=lambda labels: order.get(labels, len(order))):
        trials = by_combination[labels]
        if any(trial.state == "finished" for trial in trials):
            of_axis = dict(zip(study.apart, labels, strict=True))
            setting = ", ".join(f"{axis} {of_axis[axis]}" for axis in named)
            yield _comparison(study, setting, trials, read)


def _comparison(
    study: StudyRecord, setting: str, trials: Sequence[TrialRecord], read: ResultsReader
) -> Comparison:
    by_label: dict[str, list[TrialRecord]] = {}
    if study.across is not None:
        by_label = {label: [] for label in study.axes[study.across]}
    for trial in trials:
        label = "student" if study.across is None else trial.labels[study.across]
        by_label.setdefault(label, []).append(trial)
    runs = [trial.run for trial in trials if trial.state == "finished" and trial.run is not None]
    in_domain = shared_domain(runs)
    rows = [_row(label, found, in_domain, read) for label, found in by_label.items() if found]
    tuned = [row for row in rows if row.role == "instruction_tuning"]
    return Comparison(
        setting,
        _about(runs[0].job, in_domain),
        study.across or "model",
        [*untrained_rows(runs, read), *rows],
        tuned[0] if tuned else rows[0],
        same_test_questions(runs),
    )


def _row(
    label: str,
    trials: Sequence[TrialRecord],
    in_domain: Sequence[str] | None,
    read: ResultsReader,
) -> Row[Result]:
    """Return the row of the trials that differ in their seed only."""
    jobs = [trial.run.job for trial in trials if trial.run is not None]
    seeds = {
        trial.run.job.seed: read(trial.run, trial.run.kept)
        for trial in trials
        if trial.state == "finished" and trial.run is not None
    }
    if not jobs:
        return Row(label, seeds, in_domain, len(trials), label)
    return Row(label, seeds, jobs[0].in_domain, len(trials), role_of(jobs[0]))


def _about(job: JobConfig, in_domain: Sequence[str] | None) -> str:
    models = f"Student {job.student.model}, teacher {job.teacher.source}."
    if in_domain is None:
        return f"{models} Rows are trained on different tasks."
    return f"{models} {domains(job, in_domain)}"


def _paragraphs(study: StudyRecord, comparisons: Sequence[Comparison]) -> list[str]:
    spanned = [trial.labels for trial in study.trials if trial.state != "of another grid"]
    axes = " x ".join(
        f"{len({labels[axis] for labels in spanned})} of {axis}" for axis in study.axes
    )
    by_state: defaultdict[State, list[TrialRecord]] = defaultdict(list)
    for trial in study.trials:
        by_state[trial.state].append(trial)
    finished = len(by_state["finished"])
    found = [f"{finished} of {len(study.trials)} trials are finished ({axes})."]
    found += [comparison.about for comparison in comparisons if not comparison.setting]
    for state, shown in _STATES.items():
        by_reason: defaultdict[str, list[str]] = defaultdict(list)
        for trial in by_state[state]:
            by_reason[trial.why].append(trial.name)
        for why, names in by_reason.items():
            found.append(f"{shown}: {', '.join(names)}{f': {why}' if why else ''}")
    if len(study.trials) > finished:
        found.append("`sirt run` with the study's file continues what is not finished.")
    return found


# The orderings that the paper claims (Ranaldi and Freitas 2024, arXiv 2405.00402)


_NEAR = ("in-domain",)


@dataclass(frozen=True, slots=True)
class _Claim:
    """A row of role `before` is less accurate than one of role `after`."""

    before: str
    after: str
    domains: Sequence[str]
    source: str
    """The section of the paper that claims it."""


_DPO_ONLY = "self_refine without tuning"
PAPER_CLAIMS = (
    _Claim("baseline", "instruction_tuning", _NEAR, "4.1, Figures 2, 3"),
    _Claim("instruction_tuning", "self_refine", DOMAINS, "4.2, 4.3, Table 1"),
    _Claim("baseline", "self_refine", DOMAINS, "4.2, 4.3, Table 1"),
    _Claim("instruction_tuning", _DPO_ONLY, _NEAR, "4.4, Figure 4"),
    _Claim(_DPO_ONLY, "self_refine", _NEAR, "4.4, Figure 4"),
    _Claim("instruction_tuning", "self_refine_rounds", DOMAINS, "in rounds"),
)
_TITLE = "Orderings that the paper claims"
_NOTE = (
    "Of the mean over tasks with CoT prompts, or plain ones where there are no others: the"
    " difference in points and its 95 % interval, over seeds by Student's t where there are"
    " several, over questions by paired bootstrap where there is one. Reproduced: the interval"
    " is above 0. Not reproduced: below. Undecided: 0 is in it. In brackets: the section of"
    " Ranaldi and Freitas 2024 (arXiv 2405.00402) that claims it; rounds are this project's own."
)


def orderings(comparisons: Sequence[Comparison]) -> list[Grid]:
    """Return each claim that a comparison has rows for, and whether it holds there: one table for
    one comparison, a table for each claim for several."""
    found: dict[str, list[list[str]]] = {}
    for comparison in comparisons:
        for claim, before, after in _claimed(comparison):
            title, setting = _TITLE, f"{before.label}\n< {after.label}\n({claim.source})"
            if comparison.setting:
                title = f"Ordering: {before.label} < {after.label} ({claim.source})"
                setting = comparison.setting.replace(", ", ",\n")
            verdicts = [_verdict(comparison, claim, before, after, domain) for domain in DOMAINS]
            seeds = str(len(shared_seeds(before, after)))
            found.setdefault(title, []).append([setting, seeds, *verdicts])
    columns = [Column("seeds"), *(Column("mean", domain) for domain in DOMAINS)]
    grids = [Grid(title, "", columns, rows) for title, rows in found.items()]
    return [*grids[:-1], *(replace(grid, note=_NOTE) for grid in grids[-1:])]


def _claimed(comparison: Comparison) -> Iterator[tuple[_Claim, Row[Result], Row[Result]]]:
    for claim in PAPER_CLAIMS:
        before = [row for row in comparison.rows if row.role == claim.before]
        after = [row for row in comparison.rows if row.role == claim.after]
        for pair in product(before, after):
            yield claim, *pair


def _verdict(
    comparison: Comparison, claim: _Claim, before: Row[Result], after: Row[Result], domain: str
) -> str:
    if domain not in claim.domains:
        return "not claimed"
    tasks = [
        task for kind in comparison.prompts[:1] for task in comparison.tasks(after, domain, kind)
    ]
    if not tasks:
        return "no such task"
    seeds = shared_seeds(before, after)
    if not seeds:
        return "not finished"
    found = compare_rows(before, after, tasks)
    if len(found) < len(seeds):
        return "other questions"
    difference, low, high = difference_interval(found)
    verdict = "reproduced" if low > 0 else "not reproduced" if high < 0 else "undecided"
    return f"{verdict}\n{difference:+.1f} [{low:+.1f}, {high:+.1f}]"
