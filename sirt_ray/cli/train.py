"""`sirt train`: a training in this process, without a run: see `training/standalone.py`."""

import argparse
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from sirt_ray.cli.options import add_debug, add_force, examples
from sirt_ray.config import load
from sirt_ray.storage.uri import user_path

if TYPE_CHECKING:
    from sirt_ray.artifacts.store import Artifact
    from sirt_ray.training.standalone import Print

EXAMPLES = """\
examples:
  sirt train sft --model Qwen/Qwen3-0.6B-Base --data answers.jsonl --out runs/sft
  sirt train dpo --model runs/sft/student --data pairs.parquet --out runs/dpo \\
      --set refine.beta=0.2 --set refine.lora.rank=16
  sirt train dpo settings.yaml --set resources.gradient_checkpointing=true

Rows have the columns prompt and completion (sft), or prompt, chosen and rejected (dpo). Settings
are those of a job file: `tune` or `refine`, and under `resources` its `resources.trainer`.
"""

_STOPPED = "stopped. The same command continues at the last checkpoint"


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    train = commands.add_parser(
        "train",
        help="train in this process, without Ray or DeepSpeed",
        description="Train in this process, on the CPU or one GPU, without Ray or DeepSpeed.",
        **examples(EXAMPLES),
    )
    kinds = train.add_subparsers(required=True, metavar="COMMAND", dest="kind")
    for name, what in (
        ("sft", "instruction-tune a model on demonstrations"),
        ("dpo", "refine a model on preference pairs"),
    ):
        command = kinds.add_parser(name, help=what)
        command.add_argument("settings", nargs="?", type=user_path, metavar="SETTINGS.yaml")
        command.add_argument("--model", help="a model's folder, or a name on the hub")
        command.add_argument(
            "--data", help="a file of rows (.jsonl, .csv, .parquet, ...), or a run's folder of them"
        )
        command.add_argument("--out", help="the output folder")
        command.add_argument("--seed", type=int)
        command.add_argument(
            "--set",
            action="append",
            default=[],
            dest="overrides",
            metavar="a.b=value",
            help="override one setting; may be repeated",
        )
        add_force(command, "delete and rebuild what the settings have made stale")
        add_debug(command)
        command.set_defaults(command=_train, stopped=_STOPPED)


def _train(arguments: argparse.Namespace) -> int:
    console = Console()
    print_line = partial(console.print, soft_wrap=True, markup=False, highlight=False)
    student = _student(arguments, print_line)
    for name, value in (student.counts or {}).items():
        print_line(f"{name.replace('_', ' ')}: {value}")
    print_line(f"The student is {student.path}")
    return 0


def _student(arguments: argparse.Namespace, print_line: "Print") -> "Artifact":
    from sirt_ray.training import standalone

    names = ("model", "data", "out", "seed")
    values = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    read = partial(load.read, path=arguments.settings, overrides=arguments.overrides)
    if arguments.kind == "sft":
        return standalone.sft(
            read(standalone.SftJob, arguments=values), print_line, arguments.force
        )
    return standalone.dpo(read(standalone.DpoJob, arguments=values), print_line, arguments.force)
