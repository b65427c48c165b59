"""JSON files on a disk and in object storage, and the files that a command is asked to write, which
may be devices as well."""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sirt_ray.storage import object_store, writing

_STANDARD_STREAMS = (1, 2)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically and durably on this node; `object_store.push`
    publishes it to others."""
    writing.write(path, f"{json.dumps(value, indent=2)}\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a file in storage or on the disk; None where there is no file."""
    content = object_store.read(path)
    return None if content is None else json.loads(content)


def output_problem(path: Path) -> str | None:
    """Return why a command may not write its output to a path; None if it may."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}. Create it"
    if path.is_dir():
        return "is a folder. Name a file"
    if _is_stream(path):
        return None if os.access(path, os.W_OK) else "may not be written to. Name another file"
    if path.is_symlink():
        return f"is a symbolic link to {path.readlink()}. Name the file itself"
    if path.exists() and not path.is_file():
        return "is neither a file, a pipe nor a character device. Name a file"
    if not os.access(path.parent, os.W_OK):
        return "the folder may not be written to. Name another"
    return None


@contextmanager
def output(path: Path) -> Generator[TextIO]:
    """Open a UTF-8 text whose content is at `path` once the block has ended without an error.

    A file is replaced atomically; what is no file (a device, a pipe, the standard output by the
    name of a device) is written to. Check the path with `output_problem` first.
    """
    if _is_stream(path):
        with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
            yield file
            file.seek(0)
            with _opened_stream(path) as stream:
                shutil.copyfileobj(file, stream)
        return
    with writing.replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        yield file
        file.flush()


def _is_stream(path: Path) -> bool:
    """Return whether a path, or what it links to, is written to and never replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:  # There is nothing, or a link to nothing.
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or _standard_stream(path) is not None


def _standard_stream(path: Path) -> int | None:
    """Return the descriptor of the standard stream that a link, such as /dev/stdout, leads to, be
    the stream redirected to a file."""
    if not path.is_symlink():
        return None
    for descriptor in _STANDARD_STREAMS:
        try:
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except OSError:  # The stream is closed.
            continue
    return None


def _opened_stream(path: Path) -> TextIO:
    descriptor = _standard_stream(path)
    if descriptor is None:
        return path.open("w", encoding="utf-8")
    # Opened again, a redirected stream would be written from its start.
    return os.fdopen(os.dup(descriptor), "w", encoding="utf-8")
