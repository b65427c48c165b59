"""Small JSON files that are whole or not there, on a disk and in object storage."""

import json
import os
from pathlib import Path
from typing import Any

from sirt_ray import storage


def write_json(path: Path, value: object) -> None:
    """Write atomically and durably, on this node: `storage.push` shows it to others."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file as it is in storage or on the disk; None where there is none."""
    content = storage.read(path)
    return None if content is None else json.loads(content)
