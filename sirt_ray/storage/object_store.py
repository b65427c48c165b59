"""Runs in object storage. The storage has the truth, and each node a copy of what it has used.

    s3://bucket/runs/mine/round_01/pairs
    $SIRT_CACHE/storage/s3/bucket/runs/mine/round_01/pairs

A path below that folder stands for the object of the same name, on every node for the same one. So
code works with paths as on a disk, and says where others have to see what it has written (`push`,
`publish`) and what it needs of others (`read`, `pull`, `fetch`). Of any other path these functions
do nothing, or what their name says, on the disk.

Object stores have no rename: a folder is whole where its mark is, a file that is uploaded last,
behind a list of all others and their sizes.

Storage is reached with what stands in the environment of each node, as pyarrow reads it: for S3
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL and the AWS profile, for
Google's GOOGLE_APPLICATION_CREDENTIALS. Nothing of that is written anywhere.
"""

import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from sirt_ray.errors import StorageError
from sirt_ray.logs import waiting
from sirt_ray.storage.uri import SCHEMES, checked, explained, is_uri

# FOLDED storage_copies: Paths of this node's copies of what is in object storage, and how files get there and back.
#
# Used by `storage.py` alone, but for the paths.

_AT_ONCE = 8
_CHUNK_BYTES = 8 << 20
_SECOND_NS = 10**9
_S3_OPTIONS = "?allow_delayed_open=true"
"""One request for a small file in place of three."""

ListedFile = dict[str, Any]
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


def to_local_path(address: str) -> Path:
    """The path on this node of an address in storage, or of a path as it is. Raises ConfigError
    for an address that cannot be one."""
    if not is_uri(address):
        return Path(address).expanduser()
    if (parts := urlsplit(address)).scheme == "file":
        return Path(unquote(parts.path))
    parts = urlsplit(checked(address))
    return _root() / parts.scheme / parts.netloc / parts.path.strip("/")


def to_uri(path: Path) -> str:
    """What every node knows the path by: its address in storage; of any other path itself."""
    if not stored(path):
        return str(path)
    scheme, *names = path.relative_to(_root()).parts
    return f"{scheme}://{'/'.join(names)}"


def address(path: Path) -> str:
    """What a library that reads addresses as pyarrow does is given."""
    return to_uri(path) + (_S3_OPTIONS if to_uri(path).startswith("s3://") else "")


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


def listing(folder: Path, recursive: bool = True) -> ListedFile:
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


def is_same(file: Path, folder: Path, there: ListedFile) -> bool:
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
            f"{to_uri(file)} has {info.size or 0} bytes after {size} were uploaded: the storage gave"
            " up in the middle. Run the same command again: it continues behind what is finished"
        )
    stamp(file, info)


def download(found: ListedFile, folder: Path) -> None:
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
        waiting(f"{to_uri(path)}, which this or another process of the node fetches"),
        FileLock(path.with_name(f".{path.name}.lock")),
    ):
        yield


@contextmanager
def wrap_errors(verb: str, path: Path) -> Generator[None]:
    with explained(f"cannot {verb} {to_uri(path)}", StorageError):
        yield


__all__ = [
    "address",
    "cache",
    "discard",
    "fetch",
    "files",
    "forget",
    "is_whole",
    "names",
    "publish",
    "pull",
    "push",
    "read",
    "stored",
    "to_local_path",
    "to_uri",
    "upload",
]

_FILES = ".files.json"
"""In a whole folder: the name and size of each file but this one and the mark."""


# What others have written


def read(path: Path) -> bytes | None:
    """The content of a file as it is in storage; None where there is none."""
    if not stored(path):
        return path.read_bytes() if path.exists() else None
    with wrap_errors("read", path), suppress(FileNotFoundError):
        store, key = object_of(path)
        with store.open_input_stream(key) as stream:
            return stream.read()
    return None


def names(folder: Path) -> list[str]:
    """What is directly in a folder, in order; nothing where there is no such folder."""
    if not stored(folder):
        return sorted(found.name for found in folder.iterdir()) if folder.is_dir() else []
    with wrap_errors("read", folder):
        return sorted(info.base_name for info in infos(folder, recursive=False))


def pull(path: Path) -> None:
    """Let this node's copy of a file, or of the files directly in a folder, be as in storage. Its
    hidden files are left alone."""
    if not stored(path):
        return
    with wrap_errors("read", path), locked(path):
        store, key = object_of(path)
        info = store.get_file_info(key)
        if info.is_file:
            download({path.name: info}, path.parent)
            return
        found = listing(path, recursive=False)
        download({name: one for name, one in found.items() if name[0] != "."}, path)
        for file in files_of(path, recursive=False):
            if file.name not in found:
                file.unlink()


def fetch(folder: Path, mark: str) -> Path:
    """The folder, whole on this node: what of it is not here is fetched, once for all processes.

    Raises StorageError where it is not whole in storage.
    """
    if not stored(folder):
        return folder
    with wrap_errors("read", folder), locked(folder):
        said = read(folder / mark)
        sizes = _sizes(folder, mark, said)
        copied = folder / mark
        if copied.is_file() and copied.read_bytes() != said:
            remove(folder)  # The copy is of one that was deleted since.
        elif copied.is_file() and not _lacking(folder, sizes):
            return folder
        copied.unlink(missing_ok=True)
        found = listing(folder)
        _check_whole(folder, sizes, found)
        for file in files_of(folder):
            if file.relative_to(folder).as_posix() not in sizes:
                file.unlink()
        download({name: found[name] for name in sizes}, folder)
        _write(copied, said or b"")
    return folder


def is_whole(folder: Path, mark: str) -> bool:
    """On a disk it is, since it was renamed into its place."""
    return read(folder / mark) is not None if stored(folder) else folder.exists()


def files(uri: str) -> list[tuple[str, int, Callable[[], BufferedIOBase]]]:
    """Name, size in bytes and opener of every file below an address, in order, or of the file that
    it names."""
    path = to_local_path(uri)
    with wrap_errors("read", path):
        store, key = object_of(path)
        info = store.get_file_info(key)
        found = {"": info} if info.is_file else listing(path)
        if not found:
            raise StorageError(f"there is nothing in {uri}. Correct the address")
        opened: list[tuple[str, int, Callable[[], BufferedIOBase]]] = []
        for name, one in sorted(found.items(), key=lambda item: Path(item[0]).parts):
            opened.append((name, one.size, partial(store.open_input_file, one.path)))
        return opened


# What others are to see


def push(file: Path) -> None:
    """Let storage have the file as it is now, which is seen whole or not at all; of a folder, each
    of its files."""
    if not stored(file):
        return
    if file.is_dir():
        upload(file)
        return
    with wrap_errors("write", file):
        put(file)


def upload(folder: Path, but: str | None = None) -> None:
    """Push the folder's files that storage does not have; hidden ones are the builder's own."""
    if stored(folder):
        with wrap_errors("write", folder):
            there = listing(folder)
        mine = [file for file in files_of(folder) if file != folder / (but or "")]
        each(push, [file for file in mine if not is_same(file, folder, there)])


def publish(folder: Path, mark: str) -> None:
    """Upload what is not there, let the folder be whole, and clear the builder's own files away.

    Whole is then what storage has of it: other nodes may have uploaded parts of the folder.
    """
    if not stored(folder):
        return
    upload(folder, but=mark)
    with wrap_errors("write", folder):
        found = listing(folder)
        sizes = {name: i.size for name, i in found.items() if not is_hidden(name) and name != mark}
        _write(folder / _FILES, json.dumps(sizes, indent=1).encode())
        push(folder / _FILES)
        push(folder / mark)
        for name in found:
            if is_hidden(name) and name != _FILES:
                discard(folder / name)


def discard(path: Path, mark: str | None = None) -> None:
    """Delete a file or folder here and in storage, the mark first: what is left after a kill is
    then not whole."""
    if stored(path):
        with wrap_errors("write", path):
            store, key = object_of(path)
            if mark is not None:
                with suppress(FileNotFoundError):
                    store.delete_file(f"{key}/{mark}")
            found = store.get_file_info(key).type.name
            with suppress(FileNotFoundError):
                if found == "File":
                    store.delete_file(key)
                elif found == "Directory":
                    store.delete_dir(key)
    remove(path)


def forget(path: Path) -> None:
    """Delete this node's copy of what is in storage."""
    if stored(path):
        remove(path)


def _sizes(folder: Path, mark: str, said: bytes | None) -> dict[str, int]:
    listed = None if said is None else read(folder / _FILES)
    if listed is None:
        missing = mark if said is None else _FILES
        raise StorageError(
            f"{to_uri(folder)} is not whole: there is no {missing} in it. Let `sirt run` build it"
            " again"
        )
    return json.loads(listed)


def _lacking(folder: Path, sizes: dict[str, int]) -> bool:
    files = [(folder / name, size) for name, size in sizes.items()]
    return not all(file.is_file() and file.stat().st_size == size for file, size in files)


def _check_whole(folder: Path, sizes: dict[str, int], found: ListedFile) -> None:
    wrong = [
        f"{name} is missing" if name not in found else f"{name} has {found[name].size} bytes"
        for name, size in sizes.items()
        if name not in found or found[name].size != size
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise StorageError(
            f"{to_uri(folder)} is not as it was published: {wrong[0]}{more}. Delete it with all that"
            " is below it, and let `sirt run` build it again"
        )


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    coming = file.with_name(f".{file.name}.partial")
    coming.write_bytes(content)
    coming.replace(file)
