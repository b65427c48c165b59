"""Small files that are written atomically, on a disk and in object storage."""

import json
import os
from pathlib import Path
from typing import Any

from sirt_ray.errors import named
from sirt_ray.storage import object_store


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, as `write_text` does."""
    write_text(path, f"{json.dumps(value, indent=2)}\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 atomically and durably on this node; `object_store.push` publishes it to
    others."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise named(error, path) from error
    partial.replace(path)


def sync(path: Path) -> None:
    """Make a file that a library has written, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a file in storage or on the disk; None where there is no file."""
    content = object_store.read(path)
    return None if content is None else json.loads(content)
