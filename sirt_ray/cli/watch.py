"""`sirt watch`: the status of a run, live, from another process than the one that runs it."""

import argparse
import time

from rich.console import Console
from rich.markup import escape

from sirt_ray.cli.options import add_debug, examples
from sirt_ray.errors import StageError
from sirt_ray.storage import object_store

EXAMPLES = """\
examples:
  sirt watch runs/quickstart                 # until it ends; Ctrl-C stops watching, not the run
  sirt watch runs/mine --once                # its status now

exit codes: 0 the run is finished (with --once, or is at work); 1 it has stopped or is gone;
2 the folder is not a run's; 130 after Ctrl-C
"""
_EVERY_SECONDS = 1.0
_EVERY_SECONDS_IN_STORAGE = 5.0
_PRINT_EVERY_SECONDS = 30.0
"""Without a terminal."""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "watch",
        help="follow a run until it ends: stages, progress, rates, the last training step",
        description="Follow a run that another process drives, until it ends.",
        **examples(EXAMPLES),
    )
    command.add_argument("run_dir", metavar="RUN_DIR", help="a run's folder")
    command.add_argument("--once", action="store_true", help="print its status, and end")
    add_debug(command)
    command.set_defaults(command=_watch, stopped="stopped watching; the run continues")


def _watch(arguments: argparse.Namespace) -> int:
    from sirt_ray.report.monitor import RunMonitor

    console, run_dir = Console(), object_store.to_local_path(arguments.run_dir)
    every = _EVERY_SECONDS_IN_STORAGE if object_store.stored(run_dir) else _EVERY_SECONDS
    monitor = RunMonitor(run_dir)
    printed = 0.0
    with console.status("", spinner="dots") as status:
        while True:
            for line in monitor.new_lines():
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            found = monitor.status()
            if found.state != "at work":
                break
            shown = "between two stages"
            if found.stage is not None:
                shown = _shown(found.stage, found.since, monitor.progress(found.stage))
            status.update(escape(shown))
            due = time.monotonic() - printed >= _PRINT_EVERY_SECONDS
            if arguments.once or (due and not console.is_terminal):
                console.print(f"▸ {shown}", markup=False, highlight=False, soft_wrap=True)
                printed = time.monotonic()
            if arguments.once:
                return 0
            time.sleep(every)
    if found.state == "finished":
        console.print(f"The run in {arguments.run_dir} is finished", soft_wrap=True)
        return 0
    at = f" in {found.stage}" if found.stage else ""
    if found.state == "stopped":
        raise StageError(
            f"the run in {arguments.run_dir} has stopped{at}: {found.why}. `sirt run` with the same"
            " job continues it"
        )
    raise StageError(
        f"no driver is at work in {arguments.run_dir}, and it did not finish{at}: it was killed, or"
        " it runs on another machine whose lock is not visible here. `sirt run` with the same job"
        " continues it"
    )


def _shown(stage: str, since: float | None, progress: str) -> str:
    from sirt_ray.report.page.effort import duration

    parts = [stage]
    if since is not None:
        parts.append(duration(max(0.0, time.time() - since)))
    return "  ".join([*parts, progress] if progress else parts)
