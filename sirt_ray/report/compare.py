"""`sirt compare`: runs of any jobs side by side, on the same test questions.

Runs of one job under several seeds are one row, so that two methods under three seeds each are two.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sirt_ray.config.base import leaves_of
from sirt_ray.errors import DataError
from sirt_ray.report.comparison import (
    Comparison,
    Row,
    accuracies,
    accuracy_note,
    difference_note,
    differences,
)
from sirt_ray.report.document import Column, Document, Grid
from sirt_ray.report.funnel import funnel
from sirt_ray.report.runs import RunRecord, read_run, same_test_questions, stated
from sirt_ray.report.study_report import reader, role_of, untrained
from sirt_ray.storage import object_store

_ONLY_SEED = 0
"""Stands for the seeds of runs that have one each, and not the same."""


@dataclass(slots=True)
class Side:
    """The runs of one job."""

    runs: list[RunRecord] = field(default_factory=list)

    @property
    def label(self) -> str:
        names = [run.path.resolve().name for run in self.runs]
        if len(names) == 1:
            return names[0]
        beginning = os.path.commonprefix(names)  # noqa: RUF071  Of letters, as it is meant.
        return re.sub(r"[-_.]*(seed)?[-_.\d]*$", "", beginning) or names[0]

    @property
    def seeds(self) -> list[int]:
        return [run.job.seed for run in self.runs]


@dataclass(frozen=True, slots=True)
class Compared:
    document: Document
    comparison: Comparison


def read_sides(folders: Sequence[Path]) -> list[Side]:
    """Folders of runs, in the order given. Raises DataError for fewer than two, for one that is
    given twice and for one that is no run's."""
    places = [folder.resolve() for folder in folders]
    if len(places) < 2:
        raise DataError(
            "a comparison needs two runs or more. `sirt report` says what one has come to"
        )
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
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


def compare(sides: Sequence[Side]) -> Compared:
    """Everything against the first."""
    labels = _labels(sides)
    runs = [run for side in sides for run in side.runs]
    comparison = _comparison(sides, labels, runs)
    grids: list[Grid] = []
    notes = {accuracies: accuracy_note([comparison]), differences: difference_note([comparison])}
    for kind in comparison.prompts:
        for make in (accuracies, differences):
            grid = make(comparison, kind)
            if grid is not None:
                grids.append(replace(grid, note=notes.pop(make, "")))
    grids += [_settings(sides, labels), funnel(_counts(sides, labels))]
    document = Document(
        f"Comparison of {', '.join(labels)}",
        _paragraphs(sides, labels, runs),
        [grid for grid in grids if grid.rows],
    )
    return Compared(document, comparison)


def _labels(sides: Sequence[Side]) -> list[str]:
    labels = [side.label for side in sides]
    if len(set(labels)) == len(labels):
        return labels
    return [object_store.to_uri(side.runs[0].path) for side in sides]


def _comparison(
    sides: Sequence[Side], labels: Sequence[str], runs: Sequence[RunRecord]
) -> Comparison:
    read = reader()
    alike = _one_seed_each(sides)
    rows = [
        Row(
            label,
            role_of(side.runs[0].job),
            {
                _ONLY_SEED if alike else run.job.seed: read(run, run.kept)
                for run in side.runs
                if run.kept in run.scores
            },
            len(side.runs),
            side.runs[0].job.in_domain,
        )
        for label, side in zip(labels, sides, strict=True)
    ]
    plain = [
        replace(row, seeds={_ONLY_SEED: next(iter(row.seeds.values()))}, planned=1)
        if alike
        else row
        for row in untrained(runs, _in_domain(runs), read)
    ]
    return Comparison(
        "", _about(runs), "run", [*plain, *rows], labels[0], same_test_questions(runs)
    )


def _one_seed_each(sides: Sequence[Side]) -> bool:
    """Runs of one seed each, which is not the same: they are compared all the same, on the
    questions that they have in common."""
    return all(len(side.runs) == 1 for side in sides) and len({s.seeds[0] for s in sides}) > 1


def _in_domain(runs: Sequence[RunRecord]) -> Sequence[str] | None:
    """What all are trained on; None where they differ."""
    found = {tuple(run.job.in_domain) for run in runs}
    return found.pop() if len(found) == 1 else None


def _about(runs: Sequence[RunRecord]) -> str:
    in_domain = _in_domain(runs)
    if in_domain is None:
        return "The runs are trained on different tasks."
    far = [name for name in runs[0].job.data.evaluate if name not in in_domain]
    return f"In-domain, trained on: {', '.join(in_domain)}. Out-domain: {', '.join(far) or 'none'}."


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


def _counts(sides: Sequence[Side], labels: Sequence[str]) -> dict[str, Any]:
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
