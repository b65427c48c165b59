"""The `sirt` command: parse, wire, print. It decides nothing. `ending.py` has the exit codes."""

import argparse
import signal
from collections.abc import Sequence
from types import FrameType

from sirt_ray import user_code
from sirt_ray.cli import (
    completion,
    doctor,
    evaluate,
    export,
    grade,
    plan,
    report,
    run,
    serve,
    submit,
    train,
    watch,
)
from sirt_ray.exit_codes import run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    completion.answer(parser)
    arguments = parser.parse_args(argv)
    if getattr(arguments, "allow_code", False):
        user_code.allow()
    signal.signal(signal.SIGTERM, _interrupt)
    return run_command(lambda: arguments.command(arguments), arguments.debug, arguments.stopped)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sirt", description="A large model's reasoning for a small one: Self-refine on Ray."
    )
    parser.set_defaults(
        stopped="stopped. What is finished is kept; the same command continues where it was"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run.add_to(commands)
    plan.add_to(commands)
    evaluate.add_to(commands)
    submit.add_to(commands)
    serve.add_to(commands)
    report.add_to(commands)
    export.add_to(commands)
    watch.add_to(commands)
    doctor.add_to(commands)
    grade.add_to(commands)
    train.add_to(commands)
    completion.add_to(commands)
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
