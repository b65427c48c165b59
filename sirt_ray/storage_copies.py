"""Paths of this node's copies of what is in object storage, and how files get there and back.

Used by `storage.py` alone, but for the paths.
"""

import os
import shutil
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from sirt_ray.errors import StorageError
from sirt_ray.storage.uri import SCHEMES, checked, explained, is_uri
from sirt_ray.waiting import waiting

_AT_ONCE = 8
_CHUNK_BYTES = 8 << 20
_SECOND_NS = 10**9
_S3_OPTIONS = "?allow_delayed_open=true"
"""One request for a small file in place of three."""

Found = dict[str, Any]
"""Name below a folder -> pyarrow's FileInfo."""


def cache() -> Path:
    """What this node keeps: below $SIRT_CACHE, or else `sirt-ray` in the user's cache folder."""
    given = os.environ.get("SIRT_CACHE")
    if given:
        return Path(given).absolute()
    users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(users) / "sirt-ray"


def _root() -> Path:
    return cache().resolve() / "storage"


def local(place: str) -> Path:
    """The path on this node of an address in storage, or of a path as it is. Raises ConfigError
    for an address that cannot be one."""
    if not is_uri(place):
        return Path(place).expanduser()
    if (parts := urlsplit(place)).scheme == "file":
        return Path(unquote(parts.path))
    parts = urlsplit(checked(place))
    return _root() / parts.scheme / parts.netloc / parts.path.strip("/")


def place(path: Path) -> str:
    """What every node knows the path by: its address in storage; of any other path itself."""
    if not stored(path):
        return str(path)
    scheme, *names = path.relative_to(_root()).parts
    return f"{scheme}://{'/'.join(names)}"


def address(path: Path) -> str:
    """What a library that reads addresses as pyarrow does is given."""
    return place(path) + (_S3_OPTIONS if place(path).startswith("s3://") else "")


def stored(path: Path) -> bool:
    """Whether the path stands for something in storage."""
    root = _root()
    return path.is_relative_to(root) and path.relative_to(root).parts[:1] in _SCHEME_FOLDERS


_SCHEME_FOLDERS = [(scheme,) for scheme in SCHEMES]


@lru_cache(maxsize=16)
def _store(scheme: str, bucket: str) -> tuple[Any, str]:
    """The file system, and its name of the bucket."""
    from pyarrow import fs

    store, name = fs.FileSystem.from_uri(address(_root() / scheme / bucket))
    return store, name.strip("/")


def object_of(path: Path) -> tuple[Any, str]:
    scheme, bucket, *names = path.relative_to(_root()).parts
    store, name = _store(scheme, bucket)
    return store, "/".join([name, *names])


def infos(folder: Path, recursive: bool) -> list[Any]:
    from pyarrow import fs

    store, key = object_of(folder)
    return store.get_file_info(fs.FileSelector(key, recursive=recursive, allow_not_found=True))


def listing(folder: Path, recursive: bool = True) -> Found:
    _, key = object_of(folder)
    found = infos(folder, recursive)
    return {os.path.relpath(info.path, key): info for info in found if info.is_file}


def files_of(folder: Path, recursive: bool = True) -> list[Path]:
    """This node's files in a folder, without hidden ones."""
    found = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(
        file for file in found if file.is_file() and not is_hidden(str(file.relative_to(folder)))
    )


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def is_same(file: Path, folder: Path, there: Found) -> bool:
    """Whether storage has the file, by size and time: see `_stamp`."""
    info = there.get(file.relative_to(folder).as_posix())
    if info is None or not file.is_file():
        return False
    here = file.stat()
    # Some answers of a store leave out the fractions of a second.
    return here.st_size == info.size and here.st_mtime_ns // _SECOND_NS == _seconds(info)


def _seconds(info: Any) -> int:
    return (info.mtime_ns or 0) // _SECOND_NS


def stamp(file: Path, info: Any) -> None:
    """A copy has the time of what it is a copy of."""
    moment = _seconds(info) * _SECOND_NS
    os.utime(file, ns=(moment, moment))


def put(file: Path) -> None:
    """Upload a file; storage shows it whole or not at all."""
    from pyarrow import fs

    store, key = object_of(file)
    size = file.stat().st_size
    if size <= _CHUNK_BYTES:
        # At once: a stream that is left half written, by Ctrl-C for example, is closed as if whole.
        with store.open_output_stream(key) as stream:
            stream.write(file.read_bytes())
    else:
        fs.copy_files(
            str(file),
            key,
            source_filesystem=fs.LocalFileSystem(),
            destination_filesystem=store,
            chunk_size=_CHUNK_BYTES,
        )
    info = store.get_file_info(key)
    if info.size != size:
        raise StorageError(
            f"{place(file)} has {info.size or 0} bytes after {size} were uploaded: the storage gave"
            " up in the middle. Run the same command again: it continues behind what is finished"
        )
    stamp(file, info)


def download(found: Found, folder: Path) -> None:
    """Those that this node does not have as they are."""
    from pyarrow import fs

    def one(name: str) -> None:
        info, file = found[name], folder / name
        store, _ = object_of(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        coming = file.with_name(f".{file.name}.partial")
        fs.copy_files(
            info.path,
            str(coming),
            source_filesystem=store,
            destination_filesystem=fs.LocalFileSystem(),
            chunk_size=_CHUNK_BYTES,
        )
        stamp(coming, info)
        coming.replace(file)

    each(one, [name for name in found if not is_same(folder / name, folder, found)])


def each(do: Callable[[Any], None], things: Iterable[Any]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(do, things))


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Generator[None]:
    """One process of this node at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        waiting(f"{place(path)}, which this or another process of the node fetches"),
        FileLock(path.with_name(f".{path.name}.lock")),
    ):
        yield


@contextmanager
def told(verb: str, path: Path) -> Generator[None]:
    with explained(f"cannot {verb} {place(path)}", StorageError):
        yield
