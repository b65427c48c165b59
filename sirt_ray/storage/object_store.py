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
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import BufferedIOBase
from pathlib import Path

from sirt_ray.errors import StorageError
from sirt_ray.storage_copies import (
    Found,
    address,
    cache,
    download,
    each,
    files_of,
    infos,
    is_hidden,
    is_same,
    listing,
    local,
    locked,
    object_of,
    place,
    put,
    remove,
    stored,
    told,
)

__all__ = [
    "address",
    "cache",
    "discard",
    "fetch",
    "files",
    "forget",
    "is_whole",
    "local",
    "names",
    "place",
    "publish",
    "pull",
    "push",
    "read",
    "stored",
    "upload",
]

_FILES = ".files.json"
"""In a whole folder: the name and size of each file but this one and the mark."""


# What others have written


def read(path: Path) -> bytes | None:
    """The content of a file as it is in storage; None where there is none."""
    if not stored(path):
        return path.read_bytes() if path.exists() else None
    with told("read", path), suppress(FileNotFoundError):
        store, key = object_of(path)
        with store.open_input_stream(key) as stream:
            return stream.read()
    return None


def names(folder: Path) -> list[str]:
    """What is directly in a folder, in order; nothing where there is no such folder."""
    if not stored(folder):
        return sorted(found.name for found in folder.iterdir()) if folder.is_dir() else []
    with told("read", folder):
        return sorted(info.base_name for info in infos(folder, recursive=False))


def pull(path: Path) -> None:
    """Let this node's copy of a file, or of the files directly in a folder, be as in storage. Its
    hidden files are left alone."""
    if not stored(path):
        return
    with told("read", path), locked(path):
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
    with told("read", folder), locked(folder):
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
    path = local(uri)
    with told("read", path):
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
    with told("write", file):
        put(file)


def upload(folder: Path, but: str | None = None) -> None:
    """Push the folder's files that storage does not have; hidden ones are the builder's own."""
    if stored(folder):
        with told("write", folder):
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
    with told("write", folder):
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
        with told("write", path):
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
            f"{place(folder)} is not whole: there is no {missing} in it. Let `sirt run` build it"
            " again"
        )
    return json.loads(listed)


def _lacking(folder: Path, sizes: dict[str, int]) -> bool:
    files = [(folder / name, size) for name, size in sizes.items()]
    return not all(file.is_file() and file.stat().st_size == size for file, size in files)


def _check_whole(folder: Path, sizes: dict[str, int], found: Found) -> None:
    wrong = [
        f"{name} is missing" if name not in found else f"{name} has {found[name].size} bytes"
        for name, size in sizes.items()
        if name not in found or found[name].size != size
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise StorageError(
            f"{place(folder)} is not as it was published: {wrong[0]}{more}. Delete it with all that"
            " is below it, and let `sirt run` build it again"
        )


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    coming = file.with_name(f".{file.name}.partial")
    coming.write_bytes(content)
    coming.replace(file)
