"""`sirt completion`: shell completion of commands, options, settings and files."""

import argparse
import os
import sys
from collections.abc import Iterator
from types import UnionType
from typing import get_args

from pydantic import BaseModel

from sirt_ray.cli.options import add_debug, examples
from sirt_ray.config.job import JobConfig

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = """\
examples:
  sirt completion bash >> ~/.bashrc
  sirt completion zsh >> ~/.zshrc                    # below the line with compinit
  sirt completion fish > ~/.config/fish/completions/sirt.fish
"""
_COMPLETION_REQUEST = "_ARGCOMPLETE"
"""Environment variable that the shell sets when it requests completions."""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "completion",
        help="print the shell code that completes commands, options and settings",
        **examples(EXAMPLES),
    )
    command.add_argument("shell", choices=SHELLS)
    add_debug(command)
    command.set_defaults(command=_completion, stopped="stopped")


def answer(parser: argparse.ArgumentParser) -> None:
    """Print the completions and exit, if the shell has requested them."""
    if _COMPLETION_REQUEST not in os.environ:
        return
    import argcomplete

    for command in _commands(parser):
        for action in command._actions:
            if action.dest == "overrides":
                action.completer = _setting  # pyright: ignore[reportAttributeAccessIssue]
    argcomplete.autocomplete(parser)


def settings(model: type[BaseModel] = JobConfig, at: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings of a job."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        # In a list or a dict of sections the names in between are the user's.
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        sections = [
            kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not sections:
            yield f"{at}{name}"
        for section in sections:
            yield from settings(section, f"{at}{name}.")


def _setting(prefix: str, **_: object) -> list[str]:
    return [f"{name}=" for name in settings() if name.startswith(prefix)]


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _completion(arguments: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["sirt"], shell=arguments.shell))
    return 0
