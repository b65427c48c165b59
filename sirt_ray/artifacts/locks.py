"""One driver for one folder, or for one thing in it."""

import fcntl
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from sirt_ray import lease
from sirt_ray.errors import ArtifactError
from sirt_ray.storage import object_store


@contextmanager
def locked(root: Path) -> Generator[None]:
    """Hold the run folder for this process: two drivers would build the same artifact twice."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(
                f"another driver is running in {root}. Wait until it ends or stop it, or give this"
                " job another name"
            ) from error
        with lease.held(root) if object_store.stored(root) else nullcontext():
            yield


def is_locked(root: Path) -> bool:
    """Whether a driver holds the run folder, as far as this machine can see. For an instant this
    holds it itself: ask only where no driver is expected to start just now. Of a run in storage: as
    far as its lease says, which a driver that was killed leaves behind."""
    if object_store.stored(root):
        return lease.is_there(root)
    try:
        with (root / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def in_turn(lock: Path, wait: Callable[[], None]) -> Generator[None]:
    """Hold the file `lock` for this process. Where another one holds it, `wait` hears of it first;
    a process that dies gives it up."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
