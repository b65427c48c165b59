"""Exit codes of commands, and the single message of a command that could not do its work.

0: success; 1: a failure while running; 2: a bad job file, bad arguments or bad input data; 130:
stopped with Ctrl-C.
"""

import errno
import os
import platform
import select
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from sirt_ray.artifacts.store import versions
from sirt_ray.errors import ConfigError, ResourceError, SirtError
from sirt_ray.logs import without_secrets
from sirt_ray.storage.uri import masked

INTERRUPTED = 130
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FOLDER = (errno.EEXIST, errno.ENOTDIR)
_NO_FILES = (errno.EMFILE, errno.ENFILE)
_UNUSABLE = (
    *(errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ),
    *(errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO, errno.EFBIG),
)


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
    if isinstance(error, BrokenPipeError) and _is_output_closed():
        return ResourceError(
            "the program that reads this command's output has ended. Run the command without it;"
            " it continues behind what is finished"
        )
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
    if error.errno in _NO_FILES:
        return ResourceError(
            f"{where} cannot be opened: {error.strerror}. Raise the limit with `ulimit -n 65536`,"
            " and run the same command again"
        )
    if error.errno in _NO_FOLDER and error.filename:
        return ConfigError(
            f"{where} cannot be used as a folder: it, or one above it, is a file. Choose another"
            " folder, or move the file away"
        )
    if error.errno in _UNUSABLE and error.filename:
        return ResourceError(
            f"{where} cannot be used: {error.strerror}. Choose another path, or look at its disk"
        )
    return None


def _is_output_closed() -> bool:
    """Return whether standard output is a pipe that is no longer read. What Python still has to
    write there is dropped then."""
    output = select.poll()
    output.register(1, 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True


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
