"""Exit codes of commands, and the single message of a command that could not do its work.

0: success; 1: a failure while running; 2: a bad job file, bad arguments or bad input data; 130:
stopped with Ctrl-C.
"""

import errno
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from sirt_ray.artifacts.store import versions
from sirt_ray.errors import ResourceError, SirtError
from sirt_ray.logs import without_secrets
from sirt_ray.storage.uri import masked

INTERRUPTED = 130
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def run_command(work: Callable[[], int], debug: bool, stopped: str) -> int:
    """Run `work` and return its exit code. An error or Ctrl-C is reported on standard error.

    `debug`: raise errors with their stack trace. `stopped`: the message after Ctrl-C.
    """
    console = Console(stderr=True)
    try:
        return work()
    except KeyboardInterrupt:
        console.print(f"\n{stopped}")
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        shown = known_error(error) or _unknown(error)
        console.print(f"[bold red]error:[/] {escape(masked(str(shown)))}", soft_wrap=True)
        return shown.exit_code


def known_error(error: Exception) -> SirtError | None:
    """Return the error as the user should see it; None for an unexpected one. An error that Ray has
    carried over from another process has the original error as its cause."""
    error = getattr(error, "cause", error)
    if isinstance(error, SirtError):
        return error
    if not isinstance(error, OSError):
        return None
    where = error.filename or "a file"
    if error.errno in _FULL:
        return ResourceError(
            f"{where} cannot be written: {error.strerror}. Free some space there; the same command"
            " continues behind what is finished"
        )
    if error.errno in _REFUSED:
        return ResourceError(
            f"{where} cannot be used: {error.strerror}. Give yourself access to it, or choose"
            " another folder"
        )
    return None


def _unknown(error: Exception) -> SirtError:
    """Return the report of an unexpected error, with the file of its stack trace."""
    reason = without_secrets((str(error).strip().splitlines() or [""])[-1])
    return SirtError(
        f"this should not happen, and is a bug of sirt-ray: {type(error).__name__}: {reason}. The"
        f" stack trace is in {_trace(error)}. Please open an issue with that file, and with what"
        " `sirt doctor --json` prints; the same command continues behind what is finished"
    )


def _trace(error: Exception) -> str:
    """Write what is needed to fix the bug to a file, without the environment's secrets; return its
    path."""
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"versions: {versions()}",
        f"machine: {platform.platform()}",
        "",
        *traceback.format_exception(error),
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="sirt-error-", suffix=".log", delete=False
        ) as file:
            file.write(masked(without_secrets("\n".join(lines))))
        return str(Path(file.name))
    except OSError as full:
        return f"no file ({full.strerror}); run the command with --debug to see it"
