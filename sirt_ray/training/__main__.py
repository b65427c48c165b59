"""`python -m sirt_ray.training`: parse, train, print. What it does is in `alone.py`.

Exit codes are those of `sirt`.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from sirt_ray import jobfile
from sirt_ray.arguments import examples
from sirt_ray.ending import ended

if TYPE_CHECKING:
    from sirt_ray.artifacts import Artifact
    from sirt_ray.training.alone import Say

EXAMPLES = """\
examples:
  python -m sirt_ray.training sft --model Qwen/Qwen3-0.6B-Base --data answers.jsonl --out runs/sft
  python -m sirt_ray.training dpo --model runs/sft/student --data pairs.parquet --out runs/dpo \\
      --set refine.beta=0.2 --set refine.lora.rank=16
  python -m sirt_ray.training dpo settings.yaml --set resources.gradient_checkpointing=true

Rows have the columns prompt and completion (sft), or prompt, chosen and rejected (dpo). Settings
are those of a job file: `tune` or `refine`, and under `resources` its `resources.trainer`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console()
    say = partial(console.print, soft_wrap=True, markup=False, highlight=False)
    stopped = "stopped. The same command continues at the last checkpoint"
    return ended(lambda: _shown(_train(arguments, say), say), arguments.debug, stopped)


def _shown(student: "Artifact", say: "Say") -> int:
    for name, value in student.counts.items():
        say(f"{name.replace('_', ' ')}: {value}")
    say(f"The student is {student.path}")
    return 0


def _train(arguments: argparse.Namespace, say: "Say") -> "Artifact":
    from sirt_ray.training import alone

    given = {name: getattr(arguments, name) for name in ("model", "data", "out", "seed")}
    asked = {name: value for name, value in given.items() if value is not None}
    read = partial(jobfile.read, path=arguments.settings, overrides=arguments.overrides)
    if arguments.kind == "sft":
        return alone.sft(read(alone.Sft, arguments=asked), say, arguments.redo)
    return alone.dpo(read(alone.Dpo, arguments=asked), say, arguments.redo)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sirt_ray.training",
        description="Train in this process, without Ray or DeepSpeed.",
        **examples(EXAMPLES),
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="kind")
    for name, what in (
        ("sft", "instruction-tune a model on demonstrations"),
        ("dpo", "refine a model on preference pairs"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("settings", nargs="?", type=Path, metavar="SETTINGS.yaml")
        command.add_argument("--model", help="a model's folder, or a name on the hub")
        command.add_argument("--data", help="a .jsonl or .parquet file, or a run's folder of them")
        command.add_argument("--out", help="the folder for all that is made")
        command.add_argument("--seed", type=int)
        command.add_argument(
            "--set",
            action="append",
            default=[],
            dest="overrides",
            metavar="a.b=value",
            help="override one setting; may be repeated",
        )
        command.add_argument(
            "--redo",
            action="store_true",
            help="delete and build again what the settings have made untrue",
        )
        command.add_argument("--debug", action="store_true", help="show an error's stack trace")
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
