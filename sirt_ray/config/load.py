"""A job file -> JobConfig: YAML with line numbers and base files, `--set`, all problems at once.

    base: quickstart.yaml     # a path as seen from this file
    name: wider
    refine: {num_cot: 16}

The settings of `base` are below those of the file: sections are merged, and any other value, a list
too, is replaced. `null` removes a setting of the base, if it may be null.
"""

import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from sirt_ray import user_code
from sirt_ray.config.base import Section, merged
from sirt_ray.config.job import JobConfig
from sirt_ray.config.presets import METHODS
from sirt_ray.config.renamed import (
    Position,
    current_position,
    note_renamed,
    with_current_names,
)
from sirt_ray.errors import ConfigError
from sirt_ray.storage.uri import masked, user_path

SectionType = TypeVar("SectionType", bound=Section)
_MAX_NODES = 100_000
"""Values in a file: far above any job's."""

_RUN_CONFIG = "config.yaml"
"""The file that `sirt run` writes in a run folder."""
_WRAPPER_KINDS = {"value_error": "Value error, ", "assertion_error": "Assertion failed, "}


def load(path: Path, overrides: Sequence[str], benchmarks: Collection[str]) -> JobConfig:
    """Read, override and validate a job file, with the settings of its `method` below its own.

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
    """Return a section from a file, if there is one, then from arguments of the command line that
    have its fields' names, then from overrides. Raises ConfigError with every problem."""
    document: dict[str, Any] = {}
    sources: dict[Position, str] = {}
    if path is not None:
        document, sources = parsed(path)
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
        default_source = "the command line" if path is None else str(path)
        where = "in the arguments" if path is None else "in the job file"
        raise ConfigError(_message(error, sources, default_source, where)) from error


def with_method(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's settings on top of those of the method that it names."""
    method = METHODS.get(str(document.get("method")))
    return merged(method.settings if method else {}, document)


def parsed(path: Path) -> tuple[dict[str, Any], dict[Position, str]]:
    """Return a file's settings on top of those of its base files, and `file:line` of each.

    Raises ConfigError if a file cannot be read, is no YAML, or is its own base.
    """
    settings: dict[str, Any] = {}
    sources: dict[Position, str] = {}
    for layer in reversed(_layers(path)):
        settings = merged(settings, _seen_from(path.parent, layer.path.parent, layer.settings))
        sources |= {at: f"{layer.path}:{line}" for at, line in layer.lines.items()}
    return settings, sources


def base_files(path: Path) -> list[Path]:
    """Return the base of a job or study file, the base of that, and so on."""
    return [layer.path for layer in _layers(path)[1:]]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One file's own settings, without the key `base`."""

    path: Path
    settings: dict[str, Any]
    lines: dict[Position, int]


def _layers(path: Path) -> list[_Layer]:
    """Read a file and its base files, the nearest first."""
    layers: list[_Layer] = []
    source = ""
    while True:
        if path.resolve() in (layer.path.resolve() for layer in layers):
            chain = " -> ".join(str(file) for file in [*(layer.path for layer in layers), path])
            raise ConfigError(
                f"{source}: base: a file cannot be its own base ({chain}). Remove one `base`"
            )
        layer = _read_layer(path, source)
        layers.append(layer)
        if "base" not in layer.settings:
            return layers
        base, source = layer.settings.pop("base"), f"{path}:{layer.lines[('base',)]}"
        if not isinstance(base, str) or not base:
            raise ConfigError(
                f"{source}: base: must be the path of a file as seen from this one, but is {base!r}"
            )
        path = path.parent / user_path(base)


def _read_layer(path: Path, source: str) -> _Layer:
    """Read one file; `source` is `file:line` of the `base` that names it."""
    what = f"{source}: base: cannot read" if source else "cannot read the job file"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = "it is relative to the file" if source else "jobs/ holds ready ones"
        raise ConfigError(f"{what} {path}: {error}. Check the path; {hint}") from error
    try:
        document, node = _parsed(text)
        lines, repeated = _lines(node), _repeated_keys(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{_where(path, error)}. Fix it there") from error
    except ValueError as error:  # A number or date that Python does not make.
        raise ConfigError(f"{path} has a value that cannot be read: {error}. Fix it") from error
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply, or inside itself. Fix it there") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no settings. A job starts from `name`, `data`, `student`")
    if repeated:
        problems = [f"{path}:{line}: {problem}" for line, problem in sorted(repeated)]
        raise ConfigError(all_problems(problems, "in the job file"))
    for at, line in lines.items():
        # The names in a run's own config.yaml are for no user to change.
        if path.name != _RUN_CONFIG:
            _note_if_renamed(f"{path}:{line}", at)
    return _Layer(
        path,
        with_current_names(cast(dict[str, Any], document)),
        {current_position(at): line for at, line in lines.items()},
    )


def _seen_from(folder: Path, file_folder: Path, value: Any) -> Any:
    """Rewrite `path.py:function` in settings of a file in `file_folder` as seen from `folder`."""
    if file_folder == folder:
        return value
    if isinstance(value, Mapping):
        items = cast(Mapping[Any, Any], value).items()
        return {name: _seen_from(folder, file_folder, below) for name, below in items}
    if isinstance(value, list):
        return [_seen_from(folder, file_folder, below) for below in cast(list[Any], value)]
    if isinstance(value, str) and user_code.is_reference(value):
        file, _, function = user_code.resolve_in_run(value, file_folder).rpartition(":")
        return f"{os.path.relpath(file, folder)}:{function}"
    return value


def override(section: SectionType, overrides: Sequence[str]) -> SectionType:
    """Return a section with `field=value` overrides. Raises ConfigError with every problem."""
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
    """Return the resolved job as YAML: every setting, including defaults."""
    return yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)


def set_in(document: dict[str, Any], override: str) -> Position:
    """Set one value in place; return the position that the command line sets."""
    key, separator, value = override.partition("=")
    keys = key.split(".")
    if not separator or not all(keys):
        raise ConfigError(
            f"--set {override} is not of the form a.b=value, as in --set refine.rounds=3"
        )
    _note_if_renamed(f"--set {masked(override)}", tuple(keys))
    try:
        loaded, node = _parsed(value)
        for _, problem in _repeated_keys(node, tuple(keys)):
            raise ConfigError(f"--set {masked(override)}: {problem}")
        return set_value(document, keys, loaded)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set {override}: the value is no valid YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"--set {key}: the value is nested too deeply") from None


def _note_if_renamed(source: str, position: Position) -> None:
    current = current_position(position)
    if current != position:
        note_renamed(source, ".".join(map(str, position)), str(current[-1]))


def set_value(document: dict[str, Any], keys: Sequence[str], value: object) -> Position:
    """Set the value at the end of `keys` in place, section by section, by current names; return its
    position."""
    position = current_position(tuple(keys))
    section = document
    for name in keys[:-1]:
        if not isinstance(section.get(name), dict):
            section[name] = {}
        section = section[name]
    section[str(position[-1])] = with_current_names(value, position)
    return position


def _parsed(text: str) -> tuple[Any, yaml.Node | None]:
    """Return the content of a YAML text, and its tree. Raises YAMLError, ValueError or
    RecursionError if it cannot be read, or is many times larger than it looks."""
    node: yaml.Node | None = cast(Any, yaml).compose(text, Loader=yaml.SafeLoader)
    stack, seen = [node], 0
    while stack:  # Before anything is made of it: an alias is there each time that it is named.
        top, seen = stack.pop(), seen + 1
        if seen > _MAX_NODES:
            raise yaml.YAMLError(
                f"it has more than {_MAX_NODES:,} values, counting each time that an alias is used"
            )
        if isinstance(top, yaml.MappingNode):
            stack += itertools.chain.from_iterable(top.value)
        elif isinstance(top, yaml.SequenceNode):
            stack += top.value
    return yaml.safe_load(text), node


def _lines(node: yaml.Node | None, at: Position = ()) -> dict[Position, int]:
    """Return position in the tree -> line in the file, counted from 1."""
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


def _repeated_keys(node: yaml.Node | None, at: Position = ()) -> list[tuple[int, str]]:
    """Return (line, problem) of each key that a section has more than once, which YAML forbids and
    PyYAML ignores: it takes the last one."""
    problems: list[tuple[int, str]] = []
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, list[int]] = {}
        for key, value in node.value:
            lines.setdefault(key.value, []).append(key.start_mark.line + 1)
            problems += _repeated_keys(value, (*at, key.value))
        for name, found in lines.items():
            if len(found) > 1:
                where = f"lines {', '.join(map(str, found[:-1]))} and {found[-1]}"
                if found[0] == found[-1]:
                    where = f"line {found[0]}"
                problem = (
                    f"{'.'.join(map(str, (*at, name)))}: is set {len(found)} times, in {where}, and"
                    " only one of them can count. Remove the others"
                )
                problems.append((found[-1], problem))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            problems += _repeated_keys(value, (*at, index))
    return problems


def _where(path: Path, error: yaml.YAMLError) -> str:
    """Return where a file is no valid YAML, and why."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{path}:{error.problem_mark.line + 1} is no valid YAML: {error.problem}"
    return f"{path} is no valid YAML: {error}"


def _message(
    error: ValidationError, sources: dict[Position, str], default_source: str, where: str
) -> str:
    return all_problems(problems_of(error, sources, default_source), where)


def problems_of(
    error: ValidationError, sources: Mapping[Position, str], default_source: str
) -> list[str]:
    """Return one line for each problem. `default_source` is named for a problem without a
    source."""
    problems: list[str] = []
    for problem in error.errors():
        position: Position = tuple(problem["loc"])
        where = next(
            (sources[position[:n]] for n in range(len(position), 0, -1) if position[:n] in sources),
            default_source,
        )
        field = ".".join(map(str, position)) or "job"
        problems.append(f"{where}: {field}: {_problem_text(problem)}")
    return problems


def all_problems(problems: Sequence[str], where: str) -> str:
    """Return one message for all problems of a file; `where` as in `in the job file`."""
    count = len(problems)
    head = f"{count} problem{'s' if count > 1 else ''} {where}; nothing was started"
    return "\n".join([head, *(f"  {problem}" for problem in problems)])


def _problem_text(problem: Any) -> str:
    kind, text = problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        return "no such setting. Check the spelling; `sirt plan` prints all settings of a job"
    if kind == "missing":
        return "is required. Add it there"
    text = text.removeprefix(_WRAPPER_KINDS.get(kind, ""))
    if kind in _WRAPPER_KINDS or isinstance(problem["input"], dict):
        return text
    return f"{text[0].lower()}{text[1:]}, but is {problem['input']!r}"
