"""One driver for one folder, or for one thing in it."""

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

# FOLDED lease: One driver for one run folder in storage, wherever drivers run.
#
#     <run folder>/.driver.json     who holds it, since when, and a beat that changes
#
# Storage offers no lock that all of its kinds have. A driver is alive as long as its beat changes,
# which another one watches by its own clock, since clocks differ. Two that begin in the same moment
# both write, and the one whose text stays has it.

_FILE = ".driver.json"
_BEAT_SECONDS = 5.0
_DEAD_AFTER_SECONDS = 20.0
_LONG_AGO_SECONDS = 600.0
"""More than clocks differ by: a beat so old is nobody's."""
_SETTLED_SECONDS = 1.0
"""Within that, a driver that wrote at the same time has been overwritten or has overwritten."""
_READ_TRIES = 3


@dataclass(frozen=True, slots=True)
class Lease:
    holder: str
    host: str
    machine: str
    """Where a process of that number is that process."""
    process: int
    since: str
    beat: int = 0
    seconds: float = 0.0
    """Of the holder's clock, at the beat."""


@contextmanager
def held(root: Path) -> Generator[None]:
    """Hold the run folder while the block runs.

    Waits up to 20 s for a driver that was killed elsewhere. Raises ArtifactError where one is at
    work, and in the end where another one has taken the folder over meanwhile: the main thread gets
    SIGTERM then, of which our commands make KeyboardInterrupt.
    """
    file = root / _FILE
    mine = _take(file)
    over, lost = threading.Event(), threading.Event()
    beating = threading.Thread(target=_beat, args=(file, mine, over, lost), daemon=True)
    beating.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise ArtifactError(
            f"another driver has taken over {object_store.to_uri(root)}, because this one could not reach"
            f" the storage for {_DEAD_AFTER_SECONDS:g} s. What was finished is kept"
        ) from None
    finally:
        over.set()
        beating.join()
        if not lost.is_set():
            _release(file, mine)


def is_there(root: Path) -> bool:
    """Whether a driver has the run folder, or was killed not long ago."""
    there = _read(root / _FILE)
    return there is not None and not _is_dead(there)


def _take(file: Path) -> Lease:
    there = _read(file)
    if there is not None and not _is_dead(there):
        _wait_for_its_end(file, there)
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    mine = Lease(
        uuid.uuid4().hex, socket.gethostname(), _machine(), os.getpid(), since, 0, time.time()
    )
    _write(file, mine)
    time.sleep(_SETTLED_SECONDS)
    there = _read(file)
    if there is None or there.holder != mine.holder:
        raise _taken(file, there or mine)
    return mine


def _is_dead(lease: Lease) -> bool:
    if lease.machine == _machine() and not _runs(lease.process):
        return True
    return time.time() - lease.seconds > _LONG_AGO_SECONDS


def _machine() -> str:
    """The same for two processes that know each other's numbers, which containers may not."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and space.is_symlink():
        return f"{boot.read_text().strip()} {space.readlink()}"
    return socket.gethostname()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _wait_for_its_end(file: Path, there: Lease) -> None:
    """Raises ArtifactError as soon as the holder shows that it lives."""
    end = time.monotonic() + _DEAD_AFTER_SECONDS
    while time.monotonic() < end:
        time.sleep(_BEAT_SECONDS / 5)
        now = _read(file)
        if now is None:
            return
        if now != there:
            raise _taken(file, now)


def _taken(file: Path, lease: Lease) -> ArtifactError:
    return ArtifactError(
        f"another driver is running in {object_store.to_uri(file.parent)}: process {lease.process} on"
        f" {lease.host}, since {lease.since}. Wait until it ends or stop it, or give this job"
        f" another name. Once it has been silent for {_DEAD_AFTER_SECONDS:g} s, the same command"
        " takes over"
    )


def _beat(file: Path, mine: Lease, over: threading.Event, lost: threading.Event) -> None:
    beat = 0
    while not over.wait(_BEAT_SECONDS):
        beat += 1
        try:
            there = _read(file)
            if there is not None and there.holder != mine.holder:
                lost.set()
                _interrupt()
                return
            _write(file, replace(mine, beat=beat, seconds=time.time()))
        except (StorageError, OSError):
            continue  # A network comes back; whoever took over meanwhile is seen then.


def _interrupt() -> None:
    """Whatever the main thread waits for ends, as by a stop from outside. It is not Ctrl-C, which a
    driver that was started in the background ignores."""
    main = threading.main_thread().ident
    assert main is not None
    pthread_kill(main, SIGTERM)


def _read(file: Path) -> Lease | None:
    for _ in range(_READ_TRIES):
        content = object_store.read(file)
        try:
            return None if content is None else Lease(**json.loads(content))
        except (ValueError, TypeError):
            # Size and content are asked for one after the other: where its holder has written a
            # longer one in between, the end is missing.
            continue
    return None  # Of another version: it says nothing that we can wait for.


def _write(file: Path, lease: Lease) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(lease)))
    object_store.push(file)


def _release(file: Path, mine: Lease) -> None:
    with suppress(StorageError):  # What ended the run may be just that; the beat ends all the same.
        there = _read(file)
        if there is not None and there.holder == mine.holder:
            object_store.discard(file)


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
        with held(root) if object_store.stored(root) else nullcontext():
            yield


def is_locked(root: Path) -> bool:
    """Whether a driver holds the run folder, as far as this machine can see. For an instant this
    holds it itself: ask only where no driver is expected to start just now. Of a run in storage: as
    far as its lease says, which a driver that was killed leaves behind."""
    if object_store.stored(root):
        return is_there(root)
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
