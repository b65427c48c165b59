"""Checks of a job that run before anything is started."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from sirt_ray import user_code
from sirt_ray.benchmarks import answer_file
from sirt_ray.config.job import JobConfig
from sirt_ray.config.teacher import TeacherConfig
from sirt_ray.config.training import TrainingConfig
from sirt_ray.endpoint.request import api_key
from sirt_ray.errors import ConfigError, InputError, ModelError, UncheckedError
from sirt_ray.on_ray.data.read import check_rows_available
from sirt_ray.on_ray.engine.weights import located, names
from sirt_ray.quickstart import assets
from sirt_ray.storage.uri import is_uri
from sirt_ray.tracking.sender import check_installed
from sirt_ray.training.model_checks import Use, absent_shards, judge, require
from sirt_ray.training.model_errors import hub_unreachable
from sirt_ray.training.tasks import Source


def check_inputs(
    job: JobConfig, unchecked: list[str] | None = None, skipped: Collection[str] = ()
) -> None:
    """Check code, rows, models and teacher of a job. Raises one error with all problems. Only
    schemas and configurations are read, no code is executed and no endpoint is called.

    With `unchecked` the hub is not called either, and the list collects what only the hub or
    another machine could answer. `skipped`: sections whose files are not on this machine.
    """
    problems: list[InputError] = []
    use_hub = unchecked is None
    student = job.student
    checks: dict[str, Callable[[], object]] = {
        "code": lambda: user_code.check(job.code),
        "data": lambda: check_rows_available(job.data),
        "teacher": lambda: _check_teacher(job.teacher, use_hub),
        "student": lambda: check_model(
            "student.model", student.model, student.revision, "trained", use_hub, job.trainings
        ),
        "tracking": lambda: check_installed(job.tracking),
    }
    # A plan may be for another machine.
    if unchecked is None and not is_uri(job.output):
        checks["output"] = lambda: _check_output(job.run_dir)
    for section, check in checks.items():
        if section in skipped:
            continue
        try:
            check()
        except UncheckedError as error:
            if unchecked is None:
                problems.append(error)
            else:
                unchecked.append(str(error))
        except InputError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        # Rows cannot be checked without the code that makes them: both checks report it.
        lines = dict.fromkeys(line for problem in problems for line in str(problem).splitlines())
        raise ConfigError("\n".join(lines))


def _check_output(run_dir: Path) -> None:
    """Raise ConfigError if the run's folder can be neither used nor created."""
    above = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise ConfigError(
            f"output: {above} is a file, so the run cannot have the folder {run_dir}. Set `output`"
            " to a folder"
        )
    if not os.access(above, os.W_OK):
        raise ConfigError(
            f"output: you may not write to {above}, so the run cannot have the folder {run_dir}."
            " Give yourself access, or set `output` to a folder of yours"
        )


def check_for_cluster(job: JobConfig, unchecked: list[str]) -> None:
    """Run `check_inputs` for a job that runs on other machines. A path must be visible to all of
    them; paths that are not on this machine are left to the run, and `unchecked` collects them."""
    problems: list[str] = []
    skipped = ["tracking"]  # The packages are those of the driver's node.
    for setting, path in _paths(job):
        if not Path(path).is_absolute():
            problems.append(
                f"{setting}: {path} is relative, and each node of a cluster has its own folders."
                " Give a path that all nodes see"
            )
        elif setting != "output" and not Path(path).exists():
            unchecked.append(f"{setting}: {path} is not on this machine; the run looks for it")
        else:
            continue
        skipped.append(setting.partition(".")[0])
    try:
        check_inputs(job, unchecked, skipped)
    except InputError as error:
        problems += str(error).splitlines()
    if problems:
        raise ConfigError("\n".join(problems))


def _paths(job: JobConfig) -> Iterator[tuple[str, str]]:
    """Yield (setting, path) of what is in folders rather than on the hub or in object storage."""
    teacher = job.teacher
    paths = {"output": job.output, "data.root": job.data.root}
    if teacher.endpoint is not None:
        paths["teacher.endpoint.cache"] = teacher.endpoint.cache
    if teacher.demonstrations is not None:
        paths["teacher.demonstrations.path"] = teacher.demonstrations.path
    for setting, model in (("teacher.model", teacher.model), ("student.model", job.student.model)):
        if model is not None and not assets.is_quickstart(model) and _looks_local(model):
            paths[setting] = model
    for setting, path in paths.items():
        if path is not None and not is_uri(path):
            yield setting, path


def _looks_local(model: str) -> bool:
    """Return whether a model is more likely a folder than a name on the hub."""
    path = Path(model)
    return (
        path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or path.is_dir()
    )


def _check_teacher(teacher: TeacherConfig, use_hub: bool) -> None:
    if teacher.endpoint is not None:
        try:
            api_key(teacher.endpoint)
        except ConfigError as error:
            raise UncheckedError(str(error)) from error
    elif teacher.demonstrations is not None:
        answer_file.check(teacher.demonstrations)
    else:
        check_model("teacher.model", teacher.source, teacher.revision, "prompted", use_hub)


def check_model(
    setting: str,
    name: str,
    revision: str | None = None,
    use: Use = "served",
    use_hub: bool = True,
    trainings: Mapping[str, TrainingConfig] | None = None,
) -> None:
    """Check a model: a folder, an address in storage, or a name on the hub. Raises ModelError with
    all that is wrong, UncheckedError if only the hub or another machine's storage could answer and
    `use_hub` is off.

    `setting` is where the user named it: a setting, an argument.
    """
    try:
        source = located(Source(str(assets.resolve(name)), revision), weights=False)
    except ModelError as error:
        kind = ModelError if use_hub else UncheckedError
        raise kind(f"{setting}: {error}") from error
    path = Path(source.location)
    if _looks_local(source.location) and not path.is_dir():
        raise ModelError(
            f"{setting}: there is no folder {source.location}. Give the folder of a Hugging Face"
            " model (config.json, *.safetensors, tokenizer.json), or a name on the hub"
        )
    is_there = path.is_dir() or (use_hub and hub_unreachable() is None)
    found = judge(source, use, trainings, local_files_only=not is_there)
    if found.unloadable and not (use_hub or path.is_dir()):
        raise UncheckedError(
            f"{setting}: {name} is not on this machine; a run looks for it on the hub"
        )
    if is_uri(name) and urlsplit(name).scheme != "file":
        found.problems.extend(_storage_problems(name, path))
    require(setting, found)


def _storage_problems(address: str, fetched: Path) -> list[str]:
    """Check weights in object storage by their names, without downloading them. `fetched`: the
    folder with the other files."""
    there = {name for name in names(address) if name.endswith(".safetensors")}
    if there:
        return absent_shards(fetched, there)
    return [
        f"there are no weights (*.safetensors) in {address}. Upload them, or convert older ones"
        " with `save_pretrained`"
    ]
