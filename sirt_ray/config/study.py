"""A study file -> its trials: one job for every combination of the axes of its grid.

    study: methods
    job:                                  # what all trials share, as in a job file
      data: {train: [gsm8k], evaluate: [gsm8k, multiarith]}
      ...
    grid:
      student:                            # an axis: label -> settings, dotted
        small: {student.model: /models/small}
        large: {student.model: /models/large}
      method:
        tuned: {method: instruction_tuning}
        ours: {method: self_refine_rounds, refine.rounds: 2}
      seed: [0, 1, 2]                     # an axis with the name of a setting: its values
    exclude: [{student: large, seed: [1, 2]}]

No setting is written twice: it is in `job` or in one axis, which overrides `job`; both override a
method's settings, and `--set` overrides all. The folder of a trial is `<output>/<study>/<trial>`, a
run folder like any other; artifacts that trials share are in `<output>/<study>/artifacts`, once.

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
"""Axis -> a label or several; a rule is about every combination that has them."""
Settings = dict[str, JsonValue]
Sources = dict[jobfile.Position, str]

STATES = "study.json"
"""The file in a study's folder with its axes, and each trial's labels, state (`missing`, `finished`
or `failed`), student that was kept last, and error."""

_STUDY_SETTINGS = ("study", "output", "exclude", "only")
"""Settings of the study itself that `--set` can change; it changes all others in every trial."""
_SHOWN_TRIALS = 3
"""Trials that a problem lists by name."""


def _on_disks(output: str) -> str:
    if is_uri(output):
        raise ValueError(
            "a study's runs share artifacts by links, which object storage does not have. Give a"
            " folder that all nodes see, or run its trials as jobs"
        )
    return output


class StudyConfig(Section):
    """A study file."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """The name of the study's folder."""
    output: Annotated[str, AfterValidator(_on_disks)] = "runs"
    """The study's folder is `<output>/<study>`."""
    job: dict[str, JsonValue]
    """Settings of all trials, as in a job file."""
    grid: dict[str, dict[Label, Settings | None] | list[Label]] = Field(min_length=1)
    """Axis -> label -> settings, or the values of the setting that has the axis's name."""
    exclude: list[Rule] = Field(default=[])
    """Combinations to leave out."""
    only: list[Rule] | None = None
    """Combinations to run; None: all."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination of labels, and its job."""

    name: str
    labels: Mapping[str, str]
    """Axis -> label."""
    job: JobConfig


@dataclass(frozen=True, slots=True)
class Study:
    """The trials of a study file."""

    name: str
    folder: Path
    axes: Mapping[str, Sequence[str]]
    """Axis -> its labels."""
    trials: Sequence[Trial]

    @property
    def jobs(self) -> list[JobConfig]:
        return [trial.job for trial in self.trials]

    @property
    def shared_dir(self) -> Path:
        """The folder of the artifacts of all trials."""
        return self.folder / "artifacts"


@dataclass(frozen=True, slots=True)
class _Choice:
    """One label of an axis."""

    axis: str
    label: str
    named: JsonValue
    """The label as written in the file."""
    settings: Settings
    source: str


def is_study(path: Path) -> bool:
    """Return whether the file is a study rather than one job."""
    return "study" in jobfile.parsed(path)[0]


def load(path: Path, overrides: Sequence[str], benchmarks: Collection[str]) -> Study:
    """Read a study file. Raises ConfigError with every problem of the file and of all its
    trials."""
    document, sources = jobfile.parsed(path)
    over: dict[str, Any] = {}
    for text in overrides:
        of_study = text.partition("=")[0].split(".")[0] in _STUDY_SETTINGS
        sources[jobfile.set_in(document if of_study else over, text)] = f"--set {masked(text)}"
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
    trials = list(_trials(config, axes, over, sources, context, problems)) if not problems else []
    if not trials and not problems:
        problems.append(
            f"{path}: no combination is left. Widen `only`, or remove some of `exclude`"
        )
    if problems:
        raise ConfigError(jobfile.all_problems(problems, "in the study file"))
    return Study(
        config.study,
        Path(config.output) / config.study,
        {axis: [choice.label for choice in choices] for axis, choices in axes.items()},
        trials,
    )


def _choices(
    axis: str,
    labels: Mapping[Label, Settings | None] | Sequence[Label],
    sources: Sources,
    file: str,
) -> Iterator[_Choice]:
    """Yield the labels of an axis."""
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
    """Yield what is wrong with the grid, the settings of its labels, and the rules."""
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
                    yield f"{where}: {setting} is set by the study. Remove it"
                if owners.setdefault(setting, axis) != axis:
                    yield (
                        f"{where}: {setting} is set by the axis {owners[setting]} already, so it"
                        " would be lost in some trials. Set it in one axis"
                    )
    for setting in ("name", "output"):
        if setting in config.job:
            where = sources.get(("job", setting), file)
            yield f"{where}: job.{setting} is set by the study. Remove it"
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


def _trials(
    config: StudyConfig,
    axes: Mapping[str, Sequence[_Choice]],
    over: Mapping[str, Any],
    sources: Sources,
    context: Mapping[str, Any],
    problems: list[str],
) -> Iterator[Trial]:
    """Yield the trials that are valid. The problems of the others are appended to `problems`, each
    once for all trials that share it."""
    shared: dict[str, list[str]] = {}
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
                shared.setdefault(problem.replace(f"cell {name}: ", ""), []).append(name)
            continue
        labels = {choice.axis: choice.label for choice in choices}
        yield Trial(name, labels, _with_common_cache(job, folder))
    for problem, names in shared.items():
        more = f" and {len(names) - _SHOWN_TRIALS} more" if len(names) > _SHOWN_TRIALS else ""
        which = "all trials" if len(names) == total else ", ".join(names[:_SHOWN_TRIALS]) + more
        problems.append(f"{problem} (in {which})")


def _document(
    config: StudyConfig,
    choices: Sequence[_Choice],
    over: Mapping[str, Any],
    sources: Sources,
) -> tuple[dict[str, Any], Sources]:
    """Return a trial's settings, and the source of each."""
    document: dict[str, Any] = deepcopy(config.job)
    where = {at[1:]: source for at, source in sources.items() if at[0] == "job" and at[1:]}
    for choice in choices:
        for setting, value in choice.settings.items():
            where[jobfile.set_value(document, setting.split("."), value)] = choice.source
    document = merged(document, over)
    where |= {at: source for at, source in sources.items() if source.startswith("--set ")}
    return jobfile.with_method(document), where


def _with_common_cache(job: JobConfig, folder: Path) -> JobConfig:
    """Return the job with the study's cache of an endpoint: no trial pays twice for an answer."""
    endpoint = job.teacher.endpoint
    if endpoint is None or endpoint.cache is not None:
        return job
    cached = endpoint.model_copy(update={"cache": str(folder / "endpoint")})
    teacher = job.teacher.model_copy(update={"endpoint": cached})
    return job.model_copy(update={"teacher": teacher})


def _wanted(config: StudyConfig, choices: Sequence[_Choice]) -> bool:
    """Return whether the rules keep a combination."""
    named = {choice.axis: choice.named for choice in choices}

    def has(rule: Rule) -> bool:
        return all(named[axis] in _several(labels) for axis, labels in rule.items())

    included = config.only is None or any(map(has, config.only))
    return included and not any(map(has, config.exclude))


def _several(labels: Label | list[Label]) -> list[Label]:
    return labels if isinstance(labels, list) else [labels]
