"""Locks: one driver for a run folder, one process for a file.

On a disk the run folder is locked with `flock` on `<run folder>/.lock`. In object storage there is
a lease as well, wherever drivers run:

    <run folder>/.driver.json     the holder, since when, and a beat that changes

No lock primitive exists in all kinds of object storage. A driver is alive as long as its beat
changes, which another driver watches by its own clock, since clocks differ. Of two that start at
the same moment both write, and the one whose text remains holds the lease.
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from signal import SIGTERM, pthread_kill

from sirt_ray.errors import ArtifactError, StorageError
from sirt_ray.storage import object_store
from sirt_ray.storage.writing import opened_to_lock, write

_FILE = ".driver.json"
_BEAT_SECONDS = 5.0
_DEAD_AFTER_SECONDS = 20.0
_LONG_AGO_SECONDS = 600.0
"""More than clocks differ by: the holder of a beat so old is dead."""
_SETTLED_SECONDS = 1.0
"""After so long, of two drivers that wrote at the same time, one has overwritten the other."""
_READ_TRIES = 3


@contextmanager
def locked(root: Path) -> Generator[None]:
    """Hold the run folder for this process while the block runs: two drivers would build the same
    artifact twice. Raises ArtifactError where another one holds it, and for a run in object storage
    also as `held` does."""
    root.mkdir(parents=True, exist_ok=True)
    with opened_to_lock(root / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(
                f"another driver is running in {root}. Wait until it ends or stop it, or give this"
                " job another name"
            ) from error
        with held(root) if object_store.stored(root) else nullcontext():
            yield


def is_locked(root: Path) -> bool:
    """Return whether a driver holds the run folder, as far as this machine can see. This takes a
    shared lock for an instant: call it only where no driver is expected to start at that moment.
    For a run in object storage the lease decides, which a killed driver leaves behind."""
    if object_store.stored(root):
        return _is_held(root)
    try:
        with opened_to_lock(root / ".lock", create=False) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def in_turn(lock: Path, wait: Callable[[], None]) -> Generator[None]:
    """Hold the file `lock` for this process while the block runs. Where another process holds it,
    call `wait` first, then block until it is free; a process that dies frees it."""
    with opened_to_lock(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# The lease of a run folder in object storage.


@dataclass(frozen=True, slots=True)
class Lease:
    """The content of `.driver.json`."""

    holder: str
    """A random id of the driver."""
    host: str
    machine: str
    """The PID namespace in which `process` is the driver's PID (`_machine`)."""
    process: int
    since: str
    """When the driver took the lease, in UTC."""
    beat: int = 0
    """A counter that the driver increases."""
    seconds: float = 0.0
    """Unix time of the beat by the holder's clock."""


@contextmanager
def held(root: Path) -> Generator[None]:
    """Hold the lease of a run folder while the block runs.

    Waits up to 20 s for the lease of a driver that was killed on another machine to expire. Raises
    ArtifactError where a driver is alive, and at the end of the block where another driver has
    taken the folder over: the main thread gets SIGTERM then, which the commands turn into
    KeyboardInterrupt.
    """
    file = root / _FILE
    lease = _take(file)
    released, lost = threading.Event(), threading.Event()
    thread = threading.Thread(target=_renew, args=(file, lease, released, lost), daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise ArtifactError(
            f"another driver has taken over {object_store.to_uri(root)}, because this one could not"
            f" reach the storage for {_DEAD_AFTER_SECONDS:g} s. What was finished is kept"
        ) from None
    finally:
        released.set()
        thread.join()
        if not lost.is_set():
            _release(file, lease)


def _is_held(root: Path) -> bool:
    """Return whether a driver holds the run folder, or was killed not long ago."""
    current = _read(root / _FILE)
    return current is not None and not _is_dead(current)


def _take(file: Path) -> Lease:
    current = _read(file)
    if current is not None and not _is_dead(current):
        _wait_until_dead(file, current)
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    lease = Lease(
        uuid.uuid4().hex, socket.gethostname(), _machine(), os.getpid(), since, 0, time.time()
    )
    _write(file, lease)
    time.sleep(_SETTLED_SECONDS)
    current = _read(file)
    if current is None or current.holder != lease.holder:
        raise _held_by_other(file, current or lease)
    return lease


def _is_dead(lease: Lease) -> bool:
    if lease.machine == _machine() and not _is_running(lease.process):
        return True
    return time.time() - lease.seconds > _LONG_AGO_SECONDS


def _machine() -> str:
    """Return a name that two processes share if they are in the same PID namespace: containers on
    one host need not be."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and space.is_symlink():
        return f"{boot.read_text().strip()} {space.readlink()}"
    return socket.gethostname()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _wait_until_dead(file: Path, current: Lease) -> None:
    """Wait until the lease has expired. Raises ArtifactError as soon as the holder shows that it is
    alive."""
    end = time.monotonic() + _DEAD_AFTER_SECONDS
    while time.monotonic() < end:
        time.sleep(_BEAT_SECONDS / 5)
        now = _read(file)
        if now is None:
            return
        if now != current:
            raise _held_by_other(file, now)


def _held_by_other(file: Path, lease: Lease) -> ArtifactError:
    return ArtifactError(
        f"another driver is running in {object_store.to_uri(file.parent)}: process"
        f" {lease.process} on {lease.host}, since {lease.since}. Wait until it ends or stop it, or"
        " give this job another name. Once it has been silent for"
        f" {_DEAD_AFTER_SECONDS:g} s, the same command takes over"
    )


def _renew(file: Path, lease: Lease, released: threading.Event, lost: threading.Event) -> None:
    beat = 0
    while not released.wait(_BEAT_SECONDS):
        beat += 1
        try:
            current = _read(file)
            if current is not None and current.holder != lease.holder:
                lost.set()
                _interrupt_main_thread()
                return
            _write(file, replace(lease, beat=beat, seconds=time.time()))
        except (StorageError, OSError):
            continue  # The network may recover; a driver that took over is noticed then.


def _interrupt_main_thread() -> None:
    """End whatever the main thread waits for, as `kill` does. Not with SIGINT, which a driver that
    was started in the background ignores."""
    main = threading.main_thread().ident
    assert main is not None
    pthread_kill(main, SIGTERM)


def _read(file: Path) -> Lease | None:
    for _ in range(_READ_TRIES):
        content = object_store.read(file)
        try:
            return None if content is None else Lease(**json.loads(content))
        except (ValueError, TypeError):
            # Size and content are read one after the other: if the holder writes a longer lease in
            # between, its end is missing.
            continue
    return None  # A lease of another version has nothing that can be watched.


def _write(file: Path, lease: Lease) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, json.dumps(asdict(lease)))
    object_store.push(file)


def _release(file: Path, lease: Lease) -> None:
    with suppress(StorageError):  # It may be what ended the run; the beat ends in any case.
        current = _read(file)
        if current is not None and current.holder == lease.holder:
            object_store.discard(file)
