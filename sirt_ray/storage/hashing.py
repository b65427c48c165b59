"""Keys of the content of files and folders, independent of their paths."""

import hashlib
import os
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path

from sirt_ray.storage import object_store
from sirt_ray.storage.uri import SCHEMES

_SAMPLED_BYTES = 1 << 20
_EXCLUDED = "record.json"
"""The record of an artifact, which has the time of its creation."""

File = tuple[str, int, Callable[[], BufferedIOBase]]
"""Name below the folder, size in bytes, opener."""


def content_key(path: Path | str, sampled_above_bytes: int = 64 << 20) -> str:
    """Return a key for the content of a file or folder; a text is a URI in storage. Only the size,
    the first and the last mebibyte of files above `sampled_above_bytes` are read. Raises
    StorageError."""
    digest = hashlib.sha256()
    files = object_store.files(path) if isinstance(path, str) else _files(path)
    for name, size, opened in files:
        if Path(name).name.startswith(".") or name == _EXCLUDED:
            continue
        digest.update(f"{name}\0{size}\0".encode())
        with opened() as stream:
            if size <= sampled_above_bytes:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
            else:
                digest.update(stream.read(_SAMPLED_BYTES))
                stream.seek(size - _SAMPLED_BYTES)
                digest.update(stream.read())
    return digest.hexdigest()[:16]


def model_key(name: str, revision: str | None) -> str:
    """Return a key for the content of a model: that of a folder, or the name and revision of a
    model on the hub."""
    if name.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        return content_key(name)
    path = object_store.to_local_path(name) if name.startswith("file://") else Path(name)
    return content_key(path) if path.exists() else f"{name}@{revision or 'main'}"


def _files(path: Path) -> Iterator[File]:
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in found:
        name = file.relative_to(path).as_posix() if file != path else ""
        yield name, os.stat(file).st_size, lambda file=file: file.open("rb")
