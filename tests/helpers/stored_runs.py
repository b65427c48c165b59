"""A run in the bucket of a test, as one of several nodes sees it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from sirt_ray.storage import object_store

Node = Callable[[str], AbstractContextManager[None]]
"""Be another node, with a disk of its own, while the block runs."""


def run_dir(bucket: str) -> Path:
    return object_store.to_local_path(f"s3://{bucket}/runs/mine")


def write(folder: Path, **contents: str) -> None:
    """`sub__name` is the file `name` in a folder `sub`."""
    for name, content in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
