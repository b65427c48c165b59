"""`sirt evaluate`: score any model on benchmarks, in the same way as a run scores its students."""

import argparse
import re

from sirt_ray import user_code
from sirt_ray.artifacts.locks import locked
from sirt_ray.artifacts.store import DryRun, Store
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.cli.options import add_allow_code, add_debug, add_force, examples
from sirt_ray.config import load
from sirt_ray.config.job import JobConfig, ScoringConfig
from sirt_ray.config.resources import ResourcesConfig
from sirt_ray.logs import attached_handler, in_run
from sirt_ray.storage import object_store

EXAMPLES = """\
examples:
  sirt evaluate runs/quickstart                          # the run's own benchmarks and settings
  sirt evaluate runs/mine --benchmarks mmlu,math         # others, from the hub
  sirt evaluate /models/small --benchmarks gsm8k --root /path/to/rows --num 200 --prompts cot
  sirt evaluate quickstart:student --benchmarks word_problems --set sampling.max_tokens=96
"""
_ARGUMENTS = ("benchmarks", "root", "num", "prompts", "seed")


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `sirt evaluate`."""
    command = commands.add_parser(
        "evaluate",
        help="score a run's student, or any model, on benchmarks",
        description="Score a model on the test questions of benchmarks, as a run does. The same"
        " command again resumes an interrupted evaluation.",
        **examples(EXAMPLES),
    )
    command.add_argument(
        "model",
        metavar="MODEL|RUN_DIR",
        help="a run's folder (its last kept student), a model's folder, a name on the hub, or"
        " quickstart:student",
    )
    command.add_argument(
        "--benchmarks",
        type=_names,
        metavar="a,b",
        help=f"(default: the run's) {', '.join(REGISTRY)}",
    )
    command.add_argument(
        "--root", help="a folder of local rows (default: the run's, or rows from the hub)"
    )
    command.add_argument("--num", type=int, help="test questions per benchmark (default: all)")
    command.add_argument(
        "--prompts",
        type=_names,
        metavar="cot,plain",
        help="prompts with the chain-of-thought trigger, or without it (default: both)",
    )
    command.add_argument("--seed", type=int, help="(default: the run's, or 0)")
    command.add_argument(
        "--out",
        help="the folder for scores.json and the graded answers (default: runs/evaluate-NAME)",
    )
    command.add_argument("--address", help="a Ray cluster to run on (default: one on this machine)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="options",
        metavar="a.b=value",
        help="one field of `engine` (as `resources.student` in a job file) or of `sampling`; may be"
        " repeated",
    )
    add_force(command, "delete answers that are stale with these settings, and sample them again")
    add_allow_code(command)
    add_debug(command)
    command.set_defaults(command=_evaluate)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _evaluate(arguments: argparse.Namespace) -> int:
    from sirt_ray.driver.checks import check_model
    from sirt_ray.on_ray.cluster import connected
    from sirt_ray.on_ray.data.read import check_rows_available
    from sirt_ray.on_ray.sampling.evaluate import ModelScoring
    from sirt_ray.on_ray.serve.resolve import find_model, find_run
    from sirt_ray.report.journal import RunJournal, run_console
    from sirt_ray.report.progress import progress_for
    from sirt_ray.report.tables import scores_tables

    console = run_console()
    run = find_run(arguments.model)
    config = _config(arguments, run)
    model = find_model(arguments.model)
    check_model(arguments.model, model.path, use="prompted")
    user_code.refuse_unallowed(config.data.code)
    check_rows_available(config.data)
    out = object_store.to_local_path(arguments.out or f"runs/evaluate-{_folder_name(model.name)}")
    scoring = ModelScoring(model, config, out, progress_for(console))
    planned = DryRun(Store(out))
    scoring.run(planned)
    if not arguments.force:
        planned.raise_if_stale()
    with locked(out):
        journal = RunJournal(out, console)
        store = Store(out, force=arguments.force, on_artifact=journal.artifact)
        if planned.finished:
            scores = scoring.run(store)
        else:
            resources = ResourcesConfig(student=config.engine)
            with (
                in_run(model.name),
                attached_handler(journal),
                connected(arguments.address, resources, out / "logs"),
            ):
                scores = scoring.run(store)
        assert scores is not None
        journal.finish({model.name: scores})
    for table in scores_tables({model.name: scores}, run and run.data.train):
        console.print()
        console.print(table)
    console.print(
        f"Scores of {model.path}. Graded answers are in {object_store.to_uri(out / 'evaluation')}",
        soft_wrap=True,
    )
    return 0


def _config(arguments: argparse.Namespace, run: JobConfig | None) -> ScoringConfig:
    """Return the settings: the arguments, then the run's settings, then the defaults."""
    values = {name: value for name in _ARGUMENTS if (value := getattr(arguments, name)) is not None}
    return load.read(
        ScoringConfig,
        None,
        arguments.options,
        ({} if run is None else _settings_of(run)) | values,
        {"benchmarks": set(REGISTRY)},
    )


def _settings_of(run: JobConfig) -> dict[str, object]:
    """Return the settings that a run evaluates its students with."""
    return {
        "custom_benchmarks": {n: b.model_dump() for n, b in run.data.benchmarks.items()},
        "benchmarks": run.data.evaluate,
        "root": run.data.root,
        "num": run.data.num_test,
        "prompts": run.evaluation.prompts,
        "sampling": run.evaluation.sampling.model_dump(),
        "seed": run.seed,
        "engine": run.resources.student.model_dump(),
    }


def _folder_name(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.")
