"""A job file -> JobConfig: YAML with line numbers, `--set` overrides, all problems at once."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from sirt_ray.config.base import Section, merged
from sirt_ray.config.job import JobConfig
from sirt_ray.config.presets import METHODS
from sirt_ray.errors import ConfigError
from sirt_ray.storage.uri import masked

SectionType = TypeVar("SectionType", bound=Section)
Position = tuple[str | int, ...]
_WRAPPER_KINDS = {"value_error": "Value error, ", "assertion_error": "Assertion failed, "}


def load(path: Path, overrides: Sequence[str], benchmarks: Collection[str]) -> JobConfig:
    """Read, override and validate a job file, with the settings of its `method` under its own.

    `overrides` are `a.b=value` with YAML values. `benchmarks` are the names that `data` may use.
    Raises ConfigError with every problem, each with file and line.
    """
    return read(JobConfig, path, overrides, context={"benchmarks": set(benchmarks)})


def read(
    kind: type[SectionType],
    path: Path | None,
    overrides: Sequence[str],
    arguments: Mapping[str, object] | None = None,
    context: dict[str, Any] | None = None,
) -> SectionType:
    """A section from a file, if there is one, then from arguments of the command line that have its
    fields' names, then from overrides. Raises ConfigError with every problem."""
    document, sources = ({}, {}) if path is None else parsed(path)
    if path is not None:
        context = {"folder": path.parent, **(context or {})}
    for name, value in (arguments or {}).items():
        document[name] = value
        sources[(name,)] = f"--{name}"
    for override in overrides:
        sources[set_in(document, override)] = f"--set {masked(override)}"
    if kind is JobConfig:
        document = with_method(document)
    try:
        return kind.model_validate(document, context=context)
    except ValidationError as error:
        elsewhere = "the command line" if path is None else str(path)
        place = "in the arguments" if path is None else "in the job file"
        raise ConfigError(_message(error, sources, elsewhere, place)) from error


def with_method(document: Mapping[str, Any]) -> dict[str, Any]:
    """A job's settings on top of those of the method that it names."""
    method = METHODS.get(str(document.get("method")))
    return merged(method.settings if method else {}, document)


def parsed(path: Path) -> tuple[dict[str, Any], dict[Position, str]]:
    """A file's settings, and where each of them stands."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the job file {path}: {error}. Check the path; jobs/ holds ready ones"
        ) from error
    try:
        document = yaml.safe_load(text)
        node = cast(Any, yaml).compose(text, Loader=yaml.SafeLoader)
        lines = _lines(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{_where(path, error)}. Mend it there") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no settings. A job starts from `name`, `data`, `student`")
    return cast(dict[str, Any], document), {
        position: f"{path}:{line}" for position, line in lines.items()
    }


def override(section: SectionType, overrides: Sequence[str]) -> SectionType:
    """A section with `field=value` overrides. Raises ConfigError with every problem."""
    document = section.model_dump()
    sources = {set_in(document, text): f"--set {text}" for text in overrides}
    known = type(section).model_fields
    unknown = [source for (field, *_), source in sources.items() if field not in known]
    if unknown:
        raise ConfigError(
            f"{', '.join(unknown)}: no such option. Check the spelling; there are"
            f" {', '.join(known)}"
        )
    try:
        return type(section).model_validate(document)
    except ValidationError as error:
        raise ConfigError(_message(error, sources, "--set", "in the options")) from error


def dump(job: JobConfig) -> str:
    """The resolved job as YAML: every setting, also those left at their defaults."""
    return yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)


def set_in(document: dict[str, Any], override: str) -> Position:
    """Set one value in place; returns the position that now comes from the command line."""
    key, separator, value = override.partition("=")
    keys = key.split(".")
    if not separator or not all(keys):
        raise ConfigError(
            f"--set {override} is not of the form a.b=value, as in --set refine.rounds=3"
        )
    try:
        return set_value(document, keys, yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is no valid YAML: {error}") from error


def set_value(document: dict[str, Any], keys: Sequence[str], value: object) -> Position:
    """Set the value at the end of `keys` in place, section by section; returns its position."""
    section = document
    for name in keys[:-1]:
        if not isinstance(section.get(name), dict):
            section[name] = {}
        section = section[name]
    section[keys[-1]] = value
    return tuple(keys)


def _lines(node: yaml.Node | None, at: Position = ()) -> dict[Position, int]:
    """Position in the tree -> line in the file, counted from 1."""
    found: dict[Position, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            position = (*at, key.value)
            found[position] = key.start_mark.line + 1
            found |= _lines(value, position)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found[(*at, index)] = value.start_mark.line + 1
            found |= _lines(value, (*at, index))
    return found


def _where(path: Path, error: yaml.YAMLError) -> str:
    """Where a file stops being YAML, and why."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{path}:{error.problem_mark.line + 1} is no valid YAML: {error.problem}"
    return f"{path} is no valid YAML: {error}"


def _message(
    error: ValidationError, sources: dict[Position, str], elsewhere: str, place: str
) -> str:
    return all_problems(problems_of(error, sources, elsewhere), place)


def problems_of(
    error: ValidationError, sources: Mapping[Position, str], elsewhere: str
) -> list[str]:
    """One line for each problem. `elsewhere`: where a problem without a source lies."""
    problems: list[str] = []
    for problem in error.errors():
        position: Position = tuple(problem["loc"])
        where = next(
            (sources[position[:n]] for n in range(len(position), 0, -1) if position[:n] in sources),
            elsewhere,
        )
        field = ".".join(map(str, position)) or "job"
        problems.append(f"{where}: {field}: {_what(problem)}")
    return problems


def all_problems(problems: Sequence[str], place: str) -> str:
    """The one message for all problems of a file."""
    count = len(problems)
    head = f"{count} problem{'s' if count > 1 else ''} {place}; nothing was started"
    return "\n".join([head, *(f"  {problem}" for problem in problems)])


def _what(problem: Any) -> str:
    kind, text = problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        return "no such setting. Check the spelling; `sirt plan` prints all settings of a job"
    if kind == "missing":
        return "is required. Add it there"
    text = text.removeprefix(_WRAPPER_KINDS.get(kind, ""))
    if kind in _WRAPPER_KINDS or isinstance(problem["input"], dict):
        return text
    return f"{text[0].lower()}{text[1:]}, but is {problem['input']!r}"
