"""What a file or folder holds, as a short key that is the same wherever it lies."""

import hashlib
import os
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path

from sirt_ray.storage import object_store
from sirt_ray.storage.uri import SCHEMES

_SAMPLED = 1 << 20
_LEFT_OUT = "record.json"
"""Of an artifact: says when it was made."""

File = tuple[str, int, Callable[[], BufferedIOBase]]
"""Name below the folder, size in bytes, how it is opened."""


def content_key(path: Path | str, sampled_above_bytes: int = 64 << 20) -> str:
    """A key for the content of a file or folder. Of a file above `sampled_above_bytes` only the
    size, the first and the last mebibyte are read. Raises StorageError."""
    digest = hashlib.sha256()
    files = object_store.files(path) if isinstance(path, str) else _files(path)
    for name, size, opened in files:
        if Path(name).name.startswith(".") or name == _LEFT_OUT:
            continue
        digest.update(f"{name}\0{size}\0".encode())
        with opened() as stream:
            if size <= sampled_above_bytes:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
            else:
                digest.update(stream.read(_SAMPLED))
                stream.seek(size - _SAMPLED)
                digest.update(stream.read())
    return digest.hexdigest()[:16]


def model_key(name: str, revision: str | None) -> str:
    """A key for the content of a model: a folder's, or of one on the hub its name and revision."""
    if name.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        return content_key(name)
    path = object_store.to_local_path(name) if name.startswith("file://") else Path(name)
    return content_key(path) if path.exists() else f"{name}@{revision or 'main'}"


def _files(path: Path) -> Iterator[File]:
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in found:
        name = file.relative_to(path).as_posix() if file != path else ""
        yield name, os.stat(file).st_size, lambda file=file: file.open("rb")
