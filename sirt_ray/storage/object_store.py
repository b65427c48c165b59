"""Folders in object storage, and this node's copies of them.

    s3://bucket/runs/mine/round_01/pairs
    $SIRT_CACHE/storage/s3/bucket/runs/mine/round_01/pairs

A path below `$SIRT_CACHE/storage` stands for the object of the same name, for the same one on every
node. Code therefore works with paths as on a disk; it calls `push` or `publish` where others have
to see what it has written, and `read`, `pull` or `fetch` for what it needs of others. On any other
path these functions do nothing, or what their name says, on the disk.

Object stores have no rename: a folder is complete once it has its mark, a file that is uploaded
last, after a list of all others and their sizes. A folder that others have written has no mark. It
is identified by its listing, and each version of it is another copy (`fetch_unmarked`).

Storage is reached with the environment of each node, as pyarrow reads it: for S3
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL and the AWS profile, for
Google's GOOGLE_APPLICATION_CREDENTIALS. Nothing of that is written to any file.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping
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
from sirt_ray.storage import writing
from sirt_ray.storage.uri import SCHEMES, checked, is_uri, user_path, wrap_errors

_THREADS = 8
"""Files that are transferred at the same time."""
_CHUNK_BYTES = 8 << 20
_SECOND_NS = 10**9
_S3_OPTIONS = "?allow_delayed_open=true"
"""One request for a small file instead of three."""
_FILES = ".files.json"
"""In a complete folder: the name and size of each file but this one and the mark."""
_MAX_COPIES = 4
"""Copies of one unmarked folder, such as the versions of a run's student. The least recently used
are deleted when a new one comes."""
_SCHEME_FOLDERS = [(scheme,) for scheme in SCHEMES]

FileInfos = dict[str, Any]
"""Name below a folder -> pyarrow's FileInfo."""


# Paths and URIs


def cache() -> Path:
    """Return the folder of this node's copies: $SIRT_CACHE, or else `sirt-ray` in the user's cache
    folder."""
    configured = os.environ.get("SIRT_CACHE")
    if configured:
        return Path(configured).absolute()
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(user_cache) / "sirt-ray"


def to_local_path(uri: str) -> Path:
    """Return the path on this node of a URI in storage; of a path itself. Raises ConfigError for a
    URI that cannot be one."""
    if not is_uri(uri):
        return user_path(uri)
    if (parts := urlsplit(uri)).scheme == "file":
        return Path(unquote(parts.path))
    parts = urlsplit(checked(uri))
    return _root() / parts.scheme / parts.netloc / parts.path.strip("/")


def to_uri(path: Path) -> str:
    """Return the URI by which every node knows the path; a path that is not in storage as it is."""
    if not stored(path):
        return str(path)
    scheme, *names = path.relative_to(_root()).parts
    return f"{scheme}://{'/'.join(names)}"


def address(path: Path) -> str:
    """Return the path as a URI for libraries that read URIs as pyarrow does."""
    return to_uri(path) + (_S3_OPTIONS if to_uri(path).startswith("s3://") else "")


def stored(path: Path) -> bool:
    """Return whether the path stands for an object in storage."""
    root = _root()
    return path.is_relative_to(root) and path.relative_to(root).parts[:1] in _SCHEME_FOLDERS


def _root() -> Path:
    return cache().resolve() / "storage"


# Reading what others have written


def read(path: Path) -> bytes | None:
    """Return the content of a file as it is in storage; None where there is none."""
    if not stored(path):
        return path.read_bytes() if path.exists() else None
    with _wrap_errors("read", path), suppress(FileNotFoundError):
        store, key = _object_of(path)
        with store.open_input_stream(key) as stream:
            return stream.read()
    return None


def names(folder: Path) -> list[str]:
    """Return the names directly in a folder, in order; none where there is no such folder."""
    if not stored(folder):
        return sorted(found.name for found in folder.iterdir()) if folder.is_dir() else []
    with _wrap_errors("read", folder):
        return sorted(info.base_name for info in _infos(folder, recursive=False))


def pull(path: Path) -> None:
    """Make this node's copy of a file, or of the files directly in a folder, the same as in
    storage. Hidden files of the copy stay as they are."""
    if not stored(path):
        return
    with _wrap_errors("read", path), _locked(path):
        store, key = _object_of(path)
        info = store.get_file_info(key)
        if info.is_file:
            _download(store, {path.name: info}, path.parent)
            return
        found = _list(path, recursive=False)
        _download(store, {name: one for name, one in found.items() if name[0] != "."}, path)
        for file in _files_of(path, recursive=False):
            if file.name not in found:
                file.unlink()


def fetch(folder: Path, mark: str) -> Path:
    """Return the folder, complete on this node: fetch what is not here, once for all processes.

    Raises StorageError where it is not complete in storage.
    """
    if not stored(folder):
        return folder
    with _wrap_errors("read", folder), _locked(folder):
        content = read(folder / mark)
        sizes = _sizes(folder, mark, content)
        copied = folder / mark
        if copied.is_file() and copied.read_bytes() != content:
            _remove(folder)  # The copy is of a folder that was deleted since.
        elif copied.is_file() and _has_files(folder, sizes):
            return folder
        copied.unlink(missing_ok=True)
        found = _list(folder)
        _check_sizes(folder, sizes, found)
        for file in _files_of(folder):
            if file.relative_to(folder).as_posix() not in sizes:
                file.unlink()
        store, _ = _object_of(folder)
        _download(store, {name: found[name] for name in sizes}, folder)
        _write(copied, content or b"")
    return folder


def is_whole(folder: Path, mark: str) -> bool:
    """Return whether the folder is complete. On a disk it is, since it was renamed to its name."""
    return read(folder / mark) is not None if stored(folder) else folder.exists()


def files(uri: str) -> list[tuple[str, int, Callable[[], BufferedIOBase]]]:
    """Return name, size in bytes and opener of every file below a URI, in order, or of the file
    that it names."""
    path = to_local_path(uri)
    with _wrap_errors("read", path):
        store, key = _object_of(path)
        info = store.get_file_info(key)
        found = {"": info} if info.is_file else _list(path)
        if not found:
            raise StorageError(f"there is nothing in {uri}. Correct the address")
        opened: list[tuple[str, int, Callable[[], BufferedIOBase]]] = []
        for name, one in sorted(found.items(), key=lambda item: Path(item[0]).parts):
            opened.append((name, one.size, partial(store.open_input_file, one.path)))
        return opened


# Folders without a mark, which others have written


def list_unmarked(uri: str) -> FileInfos:
    """Return the files below a URI, as pyarrow reads URIs.

    Raises OSError or ValueError where it cannot be read, as `fetch_unmarked` does.
    """
    from pyarrow import fs

    store, key = _open(uri)
    return _by_name(store.get_file_info(fs.FileSelector(key, recursive=True)), key)


def fetch_unmarked(uri: str, found: FileInfos, skip: tuple[str, ...], name: str) -> Path:
    """Return this node's copy of the folder whose files were `found`, without those whose names end
    with one of `skip`; fetch it where it is not here, once for all processes.

    A complete copy with all files is taken where there is one. Copies are in the folder `name`
    below `weights` in the cache, the last 4 of them. Raises StorageError where the folder changes
    meanwhile.
    """
    folder = cache() / "weights" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (
        waiting(f"{uri}, which this or another process of the node fetches"),
        FileLock(folder / ".lock"),
    ):
        copy, wanted = folder / _listing_key(uri, found), found
        if skip and not _has_files(copy, _sizes_of(found)):
            wanted = {name: info for name, info in found.items() if not name.endswith(skip)}
            copy = folder / _listing_key(uri, wanted)
        if not _has_files(copy, _sizes_of(wanted)):
            shutil.rmtree(copy, ignore_errors=True)
            _fetch_version(uri, found, wanted, copy)
        os.utime(copy)
        _remove_old_copies(folder)
    return copy


def _fetch_version(uri: str, found: FileInfos, wanted: FileInfos, copy: Path) -> None:
    """Download the `wanted` files to `copy`, which appears once it is complete."""
    for leftover in copy.parent.glob(".*.partial"):  # of a process that was killed
        shutil.rmtree(leftover)
    coming = copy.with_name(f".{copy.name}.partial")
    coming.mkdir()
    try:
        _download(_open(uri)[0], wanted, coming)
        changed = _listing(list_unmarked(uri)) != _listing(found)
        if changed or not _has_files(coming, _sizes_of(wanted)):
            raise StorageError(
                f"the files in {uri} were changed while they were fetched. Load them once they are"
                " written, and write another version to another folder"
            )
        coming.rename(copy)
    finally:
        shutil.rmtree(coming, ignore_errors=True)


def _listing(found: FileInfos) -> tuple[tuple[str, int, Any], ...]:
    """Return name, size and time of every file, in order."""
    return tuple(sorted((name, info.size, info.mtime_ns) for name, info in found.items()))


def _sizes_of(found: FileInfos) -> dict[str, int]:
    return {name: info.size for name, info in found.items()}


def _listing_key(uri: str, found: FileInfos) -> str:
    return hashlib.sha256(repr((uri, _listing(found))).encode()).hexdigest()[:16]


def _remove_old_copies(folder: Path) -> None:
    copies = [copy for copy in folder.iterdir() if not copy.name.startswith(".")]
    by_use = sorted(copies, key=lambda copy: copy.stat().st_mtime_ns, reverse=True)
    for copy in by_use[_MAX_COPIES:]:
        shutil.rmtree(copy, ignore_errors=True)


# Writing what others are to see


def push(file: Path) -> None:
    """Upload the file as it is now, which others see whole or not at all; of a folder, each of its
    files."""
    if not stored(file):
        return
    if file.is_dir():
        upload(file)
        return
    with _wrap_errors("write", file):
        _put(file)


def upload(folder: Path, but: str | None = None) -> None:
    """Push the folder's files that storage does not have, without hidden ones, which are the
    builder's own, and without the file `but`."""
    if stored(folder):
        with _wrap_errors("write", folder):
            there = _list(folder)
        local = [file for file in _files_of(folder) if file != folder / (but or "")]
        _each(push, [file for file in local if not _is_same(file, folder, there)])


def publish(folder: Path, mark: str) -> None:
    """Upload what storage does not have, complete the folder, and delete the builder's own files.

    The folder then has all files that are in storage: other nodes may have uploaded parts of it.
    """
    if not stored(folder):
        return
    upload(folder, but=mark)
    with _wrap_errors("write", folder):
        found = _list(folder)
        sizes = {name: i.size for name, i in found.items() if not _is_hidden(name) and name != mark}
        _write(folder / _FILES, json.dumps(sizes, indent=1).encode())
        push(folder / _FILES)
        push(folder / mark)
        for name in found:
            if _is_hidden(name) and name != _FILES:
                discard(folder / name)


def discard(path: Path, mark: str | None = None) -> None:
    """Delete a file or folder on this node and in storage, the mark first: what a kill leaves is
    then not complete."""
    if stored(path):
        with _wrap_errors("write", path):
            store, key = _object_of(path)
            if mark is not None:
                with suppress(FileNotFoundError):
                    store.delete_file(f"{key}/{mark}")
            found = store.get_file_info(key).type.name
            with suppress(FileNotFoundError):
                if found == "File":
                    store.delete_file(key)
                elif found == "Directory":
                    store.delete_dir(key)
    _remove(path)


def forget(path: Path) -> None:
    """Delete this node's copy of what is in storage."""
    if stored(path):
        _remove(path)


# Complete folders


def _sizes(folder: Path, mark: str, content: bytes | None) -> dict[str, int]:
    """Return the size of each file of a folder whose mark has that `content`. Raises StorageError
    where the folder is not complete."""
    listed = None if content is None else read(folder / _FILES)
    if listed is None:
        missing = mark if content is None else _FILES
        raise StorageError(
            f"{to_uri(folder)} is not whole: there is no {missing} in it. Let `sirt run` build it"
            " again"
        )
    return json.loads(listed)


def _check_sizes(folder: Path, sizes: Mapping[str, int], found: FileInfos) -> None:
    wrong = [
        f"{name} is missing" if name not in found else f"{name} has {found[name].size} bytes"
        for name, size in sizes.items()
        if name not in found or found[name].size != size
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise StorageError(
            f"{to_uri(folder)} is not as it was published: {wrong[0]}{more}. Delete it with all"
            " that is below it, and let `sirt run` build it again"
        )


def _has_files(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Return whether this node has all files; also of an old copy, which may have been cleared."""
    local = [(folder / name, size) for name, size in sizes.items()]
    return all(file.is_file() and file.stat().st_size == size for file, size in local)


# Objects


def _open(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI, and its name of the object."""
    from pyarrow import fs

    return fs.FileSystem.from_uri(uri)


@lru_cache(maxsize=16)
def _store(scheme: str, bucket: str) -> tuple[Any, str]:
    """Return the file system, and its name of the bucket."""
    store, name = _open(address(_root() / scheme / bucket))
    return store, name.strip("/")


def _object_of(path: Path) -> tuple[Any, str]:
    scheme, bucket, *names = path.relative_to(_root()).parts
    store, name = _store(scheme, bucket)
    return store, "/".join([name, *names])


def _infos(folder: Path, recursive: bool) -> list[Any]:
    from pyarrow import fs

    store, key = _object_of(folder)
    return store.get_file_info(fs.FileSelector(key, recursive=recursive, allow_not_found=True))


def _list(folder: Path, recursive: bool = True) -> FileInfos:
    _, key = _object_of(folder)
    return _by_name(_infos(folder, recursive), key)


def _by_name(found: Iterable[Any], key: str) -> FileInfos:
    files = [info for info in found if info.is_file]
    outside = [info.path for info in files if ".." in info.path.split("/")]
    if outside:
        raise StorageError(
            f"{len(outside)} objects have names with '..', which would be copied to another folder"
            f" of this machine: {outside[0]}. Remove them, or name another address"
        )
    return {os.path.relpath(info.path, key): info for info in files}


def _put(file: Path) -> None:
    """Upload a file; storage shows it whole or not at all."""
    from pyarrow import fs

    store, key = _object_of(file)
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
            f"{to_uri(file)} has {info.size or 0} bytes after {size} were uploaded: the storage"
            " gave up in the middle. Run the same command again: it continues behind what is"
            " finished"
        )
    _stamp(file, info)


def _download(store: Any, found: FileInfos, folder: Path) -> None:
    """Download the files that this node does not have as they are in storage."""
    from pyarrow import fs

    def download(name: str) -> None:
        info, file = found[name], folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with writing.replacing(file) as coming:
            fs.copy_files(
                info.path,
                str(coming),
                source_filesystem=store,
                destination_filesystem=fs.LocalFileSystem(),
                chunk_size=_CHUNK_BYTES,
            )
            _stamp(coming, info)

    _each(download, [name for name in found if not _is_same(folder / name, folder, found)])


# Files of this node


def _files_of(folder: Path, recursive: bool = True) -> list[Path]:
    """Return this node's files in a folder, without hidden ones."""
    found = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(
        file for file in found if file.is_file() and not _is_hidden(str(file.relative_to(folder)))
    )


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def _is_same(file: Path, folder: Path, there: FileInfos) -> bool:
    """Return whether storage has the file, by size and time: see `_stamp`."""
    info = there.get(file.relative_to(folder).as_posix())
    if info is None or not file.is_file():
        return False
    local = file.stat()
    # Some replies of a store leave out the fractions of a second.
    return local.st_size == info.size and local.st_mtime_ns // _SECOND_NS == _seconds(info)


def _stamp(file: Path, info: Any) -> None:
    """Give a copy the time of its object."""
    moment = _seconds(info) * _SECOND_NS
    os.utime(file, ns=(moment, moment))


def _seconds(info: Any) -> int:
    return (info.mtime_ns or 0) // _SECOND_NS


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    writing.write(file, content)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _each(do: Callable[[Any], None], items: Iterable[Any]) -> None:
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(do, items))


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Let in one process of this node at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        waiting(f"{to_uri(path)}, which this or another process of the node fetches"),
        FileLock(path.with_name(f".{path.name}.lock")),
    ):
        yield


@contextmanager
def _wrap_errors(verb: str, path: Path) -> Generator[None]:
    with wrap_errors(f"cannot {verb} {to_uri(path)}", StorageError):
        yield
