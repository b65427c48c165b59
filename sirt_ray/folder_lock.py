"""One driver for one folder."""

import fcntl
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from sirt_ray import lease, storage
from sirt_ray.errors import ArtifactError


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
        with lease.held(root) if storage.stored(root) else nullcontext():
            yield
