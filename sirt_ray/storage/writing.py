"""The one way in which files are written: through no link, and durable before they have their name.

A run folder may come from somebody else. A link in it, under the name of a file that is about to be
written, would let that write change any file of the user; so a file is written under a name that
nobody can know before, which must not exist yet, and is then renamed. What is appended to or locked
is opened without following a link.
"""

import errno
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sirt_ray.errors import ArtifactError, named

_MODE = 0o666
"""Permissions of a new file, without those that the process's umask withholds."""


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Give the block an empty file beside `path` to fill, which replaces `path` when the block
    ends; after an error, nothing is left of it.

    What is then at `path` survives a power cut. Raises OSError with the name `path`.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _MODE))
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        raise named(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Write a text in UTF-8, or bytes, as `replacing` does."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def append(path: Path, text: str) -> None:
    """Append to a text in UTF-8; make the file if there is none.

    Raises ArtifactError if `path` is a link.
    """
    descriptor = _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def opened_to_lock(path: Path, create: bool = True) -> Generator[int]:
    """Open a file that is there to be locked, and give its descriptor; with `create`, make it if
    there is none.

    Raises ArtifactError if `path` is a link.
    """
    descriptor = _opened(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Make a file that a library has written, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, _MODE)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ArtifactError(
                f"{path} is a symbolic link to {path.readlink()}, and files of a run are not"
                " written through links. Remove the link; it may have come with the folder from"
                " elsewhere"
            ) from error
        raise named(error, path) from error
