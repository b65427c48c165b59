"""A study file -> its cells: one job for every combination of the axes of its grid.

    study: methods
    job:                                  # what all cells have in common, as in a job file
      data: {train: [gsm8k], evaluate: [gsm8k, multiarith]}
      ...
    grid:
      student:                            # an axis: label -> settings, dotted
        small: {student.model: /models/small}
        large: {student.model: /models/large}
      method:
        tuned: {method: instruction_tuning}
        ours: {method: self_refine_rounds, refine.rounds: 2}
      seed: [0, 1, 2]                     # an axis that is named as a setting: its values
    exclude: [{student: large, seed: [1, 2]}]

Nothing is said twice: a setting stands in `job` or in one axis, which wins over `job`; both win
over a method's own settings, and `--set` over all. A cell's folder is `<output>/<study>/<cell>`, a
run folder like any other; what cells have in common lies once in `<output>/<study>/artifacts`.

`base: FILE` puts the settings of another study file below this one's, as in a job file. Axes keep
the order in which the base has them, so an axis that only this file fills can be `{}` there.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue, ValidationError

from sirt_ray.config import load as jobfile
from sirt_ray.config.base import Section, merged
from sirt_ray.config.job import JobConfig
from sirt_ray.errors import ConfigError
from sirt_ray.storage.uri import is_uri, masked

Label = str | int | float | bool
Rule = dict[str, Label | list[Label]]
"""Axis -> a label or several; says something of every combination that has them."""
Settings = dict[str, JsonValue]
Sources = dict[jobfile.Position, str]

STATES = "study.json"
"""In a study's folder: its axes, and each cell's labels, state (`missing`, `finished` or `failed`),
student that was kept last, and error."""

_OWN = ("study", "output", "exclude", "only")
"""What `--set` changes of the study itself; all else it changes in every cell."""
_SHOWN_CELLS = 3


def _on_disks(output: str) -> str:
    if is_uri(output):
        raise ValueError(
            "a study's runs have artifacts in common by links, which object storage does not have."
            " Give a folder that all nodes see, or run its cells as jobs"
        )
    return output


class StudyConfig(Section):
    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the study's folder."""
    output: Annotated[str, AfterValidator(_on_disks)] = "runs"
    """The study's folder is `<output>/<study>`."""
    job: dict[str, JsonValue]
    """Settings of all cells, as in a job file."""
    grid: dict[str, dict[Label, Settings | None] | list[Label]] = Field(min_length=1)
    """Axis -> label -> settings, or the values of the setting that the axis is named as."""
    exclude: list[Rule] = Field(default=[])
    """Combinations to leave out."""
    only: list[Rule] | None = None
    """Combinations to take; None: all."""


@dataclass(frozen=True, slots=True)
class Trial:
    name: str
    labels: Mapping[str, str]
    """Axis -> label."""
    job: JobConfig


@dataclass(frozen=True, slots=True)
class Study:
    name: str
    folder: Path
    axes: Mapping[str, Sequence[str]]
    """Axis -> its labels."""
    cells: Sequence[Trial]

    @property
    def jobs(self) -> list[JobConfig]:
        return [cell.job for cell in self.cells]

    @property
    def pool(self) -> Path:
        """Where the artifacts of all cells lie."""
        return self.folder / "artifacts"


@dataclass(frozen=True, slots=True)
class _Choice:
    """One label of an axis."""

    axis: str
    label: str
    named: JsonValue
    """As it stands in the file."""
    settings: Settings
    source: str


def is_study(path: Path) -> bool:
    """Whether the file spans a study rather than one job."""
    return "study" in jobfile.parsed(path)[0]


def load(path: Path, overrides: Sequence[str], benchmarks: Collection[str]) -> Study:
    """Read a study file. Raises ConfigError with every problem of the file and of all its cells."""
    document, sources = jobfile.parsed(path)
    over: dict[str, Any] = {}
    for text in overrides:
        own = text.partition("=")[0].split(".")[0] in _OWN
        sources[jobfile.set_in(document if own else over, text)] = f"--set {masked(text)}"
    try:
        config = StudyConfig.model_validate(document)
    except ValidationError as error:
        problems = jobfile.problems_of(error, sources, str(path))
        raise ConfigError(jobfile.all_problems(problems, "in the study file")) from error
    axes = {
        axis: list(_choices(axis, labels, sources, str(path)))
        for axis, labels in config.grid.items()
    }
    problems = [*_grid_problems(config, axes, sources, str(path))]
    context = {"benchmarks": set(benchmarks), "folder": path.parent}
    cells = list(_cells(config, axes, over, sources, context, problems)) if not problems else []
    if not cells and not problems:
        problems.append(f"{path}: no combination is left. Widen `only`, or take from `exclude`")
    if problems:
        raise ConfigError(jobfile.all_problems(problems, "in the study file"))
    return Study(
        config.study,
        Path(config.output) / config.study,
        {axis: [choice.label for choice in choices] for axis, choices in axes.items()},
        cells,
    )


def _choices(
    axis: str,
    labels: Mapping[Label, Settings | None] | Sequence[Label],
    sources: Sources,
    file: str,
) -> Iterator[_Choice]:
    if isinstance(labels, Mapping):
        for label, settings in labels.items():
            source = sources.get(("grid", axis, str(label)), file)
            yield _Choice(axis, str(label), label, settings or {}, source)
        return
    short = axis.rpartition(".")[2]
    for index, value in enumerate(labels):
        source = sources.get(("grid", axis, index), file)
        yield _Choice(axis, f"{short}{value}", value, {axis: value}, source)


def _grid_problems(
    config: StudyConfig, axes: Mapping[str, Sequence[_Choice]], sources: Sources, file: str
) -> Iterator[str]:
    owners: dict[str, str] = {}
    for axis, choices in axes.items():
        if not choices:
            yield f"{sources.get(('grid', axis), file)}: grid.{axis}: has no labels. Give one"
        for choice in choices:
            where = f"{choice.source}: grid.{axis}.{choice.label}"
            if not all(letter.isalnum() or letter in "._-" for letter in choice.label):
                yield f"{where}: a label names folders: letters, digits, '.', '_', '-'. Rename it"
            for setting in choice.settings:
                if setting in ("name", "output"):
                    yield f"{where}: {setting} is the study's to give. Take it away"
                if owners.setdefault(setting, axis) != axis:
                    yield (
                        f"{where}: {setting} is set by the axis {owners[setting]} already, so it"
                        " would be lost in some cells. Set it in one axis"
                    )
    for setting in ("name", "output"):
        if setting in config.job:
            where = sources.get(("job", setting), file)
            yield f"{where}: job.{setting} is the study's to give. Take it away"
    for field, rules in (("exclude", config.exclude), ("only", config.only or [])):
        for index, rule in enumerate(rules):
            where = f"{sources.get((field, index), file)}: {field}"
            for axis, labels in rule.items():
                known = [choice.named for choice in axes.get(axis, ())]
                if axis not in axes:
                    yield f"{where}: {axis} is no axis. There are {', '.join(axes)}"
                elif unknown := [label for label in _several(labels) if label not in known]:
                    yield (
                        f"{where}: {axis} has no {', '.join(map(str, unknown))}. There are"
                        f" {', '.join(map(str, known))}"
                    )


def _cells(
    config: StudyConfig,
    axes: Mapping[str, Sequence[_Choice]],
    over: Mapping[str, Any],
    sources: Sources,
    context: Mapping[str, Any],
    problems: list[str],
) -> Iterator[Trial]:
    """The cells that can be run; of the others, `problems` hears once for all that share one."""
    told: dict[str, list[str]] = {}
    total = 0
    for choices in product(*axes.values()):
        if not _wanted(config, choices):
            continue
        total += 1
        name = "-".join(choice.label for choice in choices)
        document, where = _document(config, choices, over, sources)
        folder = Path(config.output) / config.study
        document |= {"name": name, "output": str(folder)}
        try:
            job = JobConfig.model_validate(document, context=dict(context))
        except ValidationError as error:
            for problem in jobfile.problems_of(error, where, f"cell {name}"):
                told.setdefault(problem.replace(f"cell {name}: ", ""), []).append(name)
            continue
        labels = {choice.axis: choice.label for choice in choices}
        yield Trial(name, labels, _with_common_cache(job, folder))
    for problem, names in told.items():
        more = f" and {len(names) - _SHOWN_CELLS} more" if len(names) > _SHOWN_CELLS else ""
        which = "all cells" if len(names) == total else ", ".join(names[:_SHOWN_CELLS]) + more
        problems.append(f"{problem} (in {which})")


def _document(
    config: StudyConfig,
    choices: Sequence[_Choice],
    over: Mapping[str, Any],
    sources: Sources,
) -> tuple[dict[str, Any], Sources]:
    """A cell's settings, and where each of them stands."""
    document: dict[str, Any] = deepcopy(config.job)
    where = {at[1:]: source for at, source in sources.items() if at[0] == "job" and at[1:]}
    for choice in choices:
        for setting, value in choice.settings.items():
            where[jobfile.set_value(document, setting.split("."), value)] = choice.source
    document = merged(document, over)
    where |= {at: source for at, source in sources.items() if source.startswith("--set ")}
    return jobfile.with_method(document), where


def _with_common_cache(job: JobConfig, folder: Path) -> JobConfig:
    """What one cell has paid an endpoint for, no other one pays for again."""
    endpoint = job.teacher.endpoint
    if endpoint is None or endpoint.cache is not None:
        return job
    cached = endpoint.model_copy(update={"cache": str(folder / "endpoint")})
    teacher = job.teacher.model_copy(update={"endpoint": cached})
    return job.model_copy(update={"teacher": teacher})


def _wanted(config: StudyConfig, choices: Sequence[_Choice]) -> bool:
    named = {choice.axis: choice.named for choice in choices}

    def has(rule: Rule) -> bool:
        return all(named[axis] in _several(labels) for axis, labels in rule.items())

    taken = config.only is None or any(map(has, config.only))
    return taken and not any(map(has, config.exclude))


def _several(labels: Label | list[Label]) -> list[Label]:
    return labels if isinstance(labels, list) else [labels]
