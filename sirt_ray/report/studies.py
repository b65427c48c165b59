"""A study's folder -> its cells as far as each has come, and what its axes change."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from sirt_ray.config.study import STATES
from sirt_ray.errors import DataError, SirtError
from sirt_ray.report.runs import RunRecord, read_run

State = Literal["finished", "unfinished", "failed", "not begun", "unreadable", "of another grid"]


@dataclass(frozen=True, slots=True)
class TrialRecord:
    name: str
    labels: Mapping[str, str]
    """Axis -> label."""
    state: State
    why: str = ""
    """What is missing of an unfinished cell; what went wrong with a failed or unreadable one."""
    run: RunRecord | None = None
    """Where there is a readable one."""


@dataclass(frozen=True, slots=True)
class StudyRecord:
    name: str
    axes: Mapping[str, Sequence[str]]
    """Axis -> its labels."""
    cells: Sequence[TrialRecord]
    across: str | None
    """The axis whose labels are compared: that of the methods, and where all cells have one method
    the last that leaves the student and the teacher as they are."""
    seeds: str | None
    """The axis that changes nothing but the seed."""

    @property
    def apart(self) -> list[str]:
        """The other axes: each combination of their labels is looked at by itself."""
        return [axis for axis in self.axes if axis not in (self.across, self.seeds)]


class _Cell(BaseModel):
    state: str
    error: str | None = None
    labels: dict[str, str]


class _Study(BaseModel):
    """`study.json`."""

    study: str
    axes: dict[str, list[str]]
    cells: dict[str, _Cell]


def is_study(folder: Path) -> bool:
    return (folder / STATES).is_file()


def read_study(folder: Path) -> StudyRecord:
    """Read a study's cells; one that cannot be read is told of in its place. Raises DataError where
    `study.json` itself cannot be read."""
    path = folder / STATES
    try:
        told = _Study.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path} cannot be read as a study's record: {_first(error)}. Move it away and run"
            " `sirt run` with the study's file, which writes it anew and keeps what is finished"
        ) from error
    cells = [
        _read(folder, name, cell, of_grid=cell.labels.keys() == told.axes.keys())
        for name, cell in told.cells.items()
    ]
    across, seeds = _roles(list(told.axes), cells)
    return StudyRecord(told.study, told.axes, cells, across, seeds)


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        return f"{place}: {problem['msg']}" if place else problem["msg"]
    return str(error)


def _read(folder: Path, name: str, told: _Cell, of_grid: bool) -> TrialRecord:
    def cell(state: State, why: str = "", run: RunRecord | None = None) -> TrialRecord:
        return TrialRecord(name, told.labels, state, " ".join(why.split("\n", 1)[0].split()), run)

    if not of_grid:
        return cell("of another grid")
    if Path(name).name != name or name == "..":
        return cell("unreadable", "its name is not that of a folder in the study's")
    began = (folder / name / "config.yaml").is_file()
    if not began and told.state == "missing":
        return cell("not begun")
    try:
        run = read_run(folder / name) if began else None
    except SirtError as error:
        return cell("unreadable", str(error))
    if told.state == "failed":
        return cell("failed", told.error or "no reason is recorded", run)
    if run is None:
        return cell("unreadable", "its folder is gone or was emptied")
    if run.missing:
        return cell("unfinished", ", ".join(run.missing), run)
    return cell("finished", run=run)


def _roles(axes: Sequence[str], cells: Sequence[TrialRecord]) -> tuple[str | None, str | None]:
    """The axis that is compared across, and the one of the seeds. An axis of which no two cells
    have begun is known by its name alone."""
    jobs = [
        (
            cell.labels,
            cell.run.job.model_dump(
                mode="json", exclude={"name", "output", "resources", "tracking"}
            ),
        )
        for cell in cells
        if cell.run is not None
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
    """The sections of the job that differ between cells that are alike in all other axes."""
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
