"""A disk without room for one file: a fake of the kernel's answer in this process. The file's name
cannot be known before, so that the kernel's own full device cannot stand in its place."""

import errno
import os
from collections.abc import Callable
from pathlib import Path


def fsync_without_room(name: str, while_there: Path | None = None) -> Callable[[int], None]:
    """Return an `os.fsync` that fails for files with `name` in theirs; with `while_there`, only
    while that file is there."""
    fsync = os.fsync

    def without_room(descriptor: int) -> None:
        file = os.readlink(f"/proc/self/fd/{descriptor}")
        if name in Path(file).name and (while_there is None or while_there.exists()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    return without_room
