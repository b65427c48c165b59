"""Where a policy's weights lie on this node.

    folder  ->  itself
    name on the hub, s3://, gs://  ->  a copy on this node, fetched once

Object storage is reached as `storage.py` says. What others have put there has no mark of ours: it
is known by its listing, names, sizes and times.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ModelError
from sirt_ray.logs import waiting
from sirt_ray.storage import object_store
from sirt_ray.storage.object_store import each
from sirt_ray.storage.uri import is_uri, masked
from sirt_ray.training.tasks import Source

_KEPT = 4
"""Copies of one place, the versions of a run's student for example. Those that were used least
recently go when a new one comes."""
_CHUNK_BYTES = 8 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""What of a model its tokenizer and configuration do not need."""

Listing = tuple[tuple[str, int, Any], ...]
"""Name, size and time of every file below a folder."""


def on_hub(policy: Policy) -> bool:
    """Is the policy named as the hub names models?"""
    path = Path(policy.path)
    return not is_uri(policy.path) and not path.is_absolute() and not path.is_dir()


def located(source: Source, weights: bool = True) -> Source:
    """The model with its folder on this node, where it lies in object storage; `weights=False`:
    without them, for its tokenizer and configuration. Raises ModelError."""
    if not is_uri(source.name):
        return source
    folder = local_folder(Policy("model", source.name, source.revision), weights)
    return replace(source, folder=str(folder))


def local_folder(policy: Policy, weights: bool = True) -> Path:
    """The folder on this node that holds the policy's weights; fetched where it is not there.

    Copies from object storage are kept under $SIRT_CACHE, or else `sirt-ray` in the user's cache
    folder: one for each content, the last 4 of each place. Raises ModelError.
    """
    if is_uri(policy.path):
        with explained(policy.path):
            return _from_storage(policy, weights)
    if not on_hub(policy):
        folder = Path(policy.path)
        if not folder.is_dir():
            raise ModelError(
                f"there is no folder {folder} on this node. Give a folder that every node sees, an"
                " address of object storage such as s3://, or a name on the hub"
            )
        return folder
    from huggingface_hub import snapshot_download

    with explained(policy.path), waiting(f"the hub's {policy.path}"):
        return Path(snapshot_download(policy.path, revision=policy.revision))


def names(uri: str) -> list[str]:
    """The files that an address holds. Raises ModelError."""
    from pyarrow import fs

    with explained(uri):
        return [name for name, _, _ in _listing(*fs.FileSystem.from_uri(uri))]


def _from_storage(policy: Policy, weights: bool) -> Path:
    from pyarrow import fs

    uri = policy.path
    parts = urlsplit(uri)
    if parts.password or parts.query:
        # Not said which: the address may hold a key.
        raise ModelError(
            f"an address of weights ({parts.scheme}://...) has credentials or options in it."
            " Addresses are written to the run folder: put them into the environment of the nodes"
        )
    store, folder = fs.FileSystem.from_uri(uri)
    if isinstance(store, fs.LocalFileSystem):
        return local_folder(Policy(policy.version, folder))
    listing = _listing(store, folder)
    if not any(name in ("config.json", "adapter_config.json") for name, _, _ in listing):
        raise ModelError(
            f"there is no model in {uri}: it has neither config.json nor adapter_config.json."
            " Give the folder that holds the weights, and check that they were all uploaded"
        )
    place = object_store.cache() / "weights" / _name_of_place(uri)
    place.mkdir(parents=True, exist_ok=True)
    with (
        waiting(f"{uri}, which this or another process of the node fetches"),
        FileLock(place / ".lock"),
    ):
        whole, wanted = place / _key(uri, listing), listing
        if not (weights or _is_whole(whole, listing)):
            wanted = tuple(one for one in listing if not one[0].endswith(_WEIGHTS))
            whole = place / _key(uri, wanted)
        if not _is_whole(whole, wanted):
            shutil.rmtree(whole, ignore_errors=True)
            _fetch(store, folder, listing, wanted, whole)
        os.utime(whole)
        _forget_old(place)
    return whole


def _key(uri: str, listing: Listing) -> str:
    return hashlib.sha256(repr((uri, listing)).encode()).hexdigest()[:16]


def _fetch(store: Any, folder: str, listing: Listing, wanted: Listing, whole: Path) -> None:
    """Fill `whole` with what is wanted of the listing; it appears when it is complete."""
    from pyarrow import fs

    for left_behind in whole.parent.glob(".*.partial"):  # by a process that was killed
        shutil.rmtree(left_behind)
    partial = whole.with_name(f".{whole.name}.partial")
    partial.mkdir()

    def copy(name: str) -> None:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        fs.copy_files(
            f"{folder}/{name}",
            str(partial / name),
            source_filesystem=store,
            destination_filesystem=fs.LocalFileSystem(),
            chunk_size=_CHUNK_BYTES,
        )

    try:
        each(copy, [name for name, _, _ in wanted])
        if _listing(store, folder) != listing or not _is_whole(partial, wanted):
            raise ModelError(
                f"the weights in {folder} were changed while they were fetched. Load them once they"
                " are written, and write another version to another folder"
            )
        partial.rename(whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _listing(store: Any, folder: str) -> Listing:
    from pyarrow import fs

    found = store.get_file_info(fs.FileSelector(folder, recursive=True))
    return tuple(
        sorted(
            (os.path.relpath(info.path, folder), info.size, info.mtime_ns)
            for info in found
            if info.type == fs.FileType.File
        )
    )


def _is_whole(folder: Path, listing: Listing) -> bool:
    """Also of a copy that was made long ago: someone may have cleared files away."""
    files = [(folder / name, size) for name, size, _ in listing]
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def _forget_old(place: Path) -> None:
    copies = [folder for folder in place.iterdir() if not folder.name.startswith(".")]
    by_use = sorted(copies, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
    for folder in by_use[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


def _name_of_place(uri: str) -> str:
    """The same for all versions: `.../round_01/student` and `.../round_02/student` are one."""
    place = re.sub(r"\bround_\d+\b", "*", uri.rstrip("/"))
    name = re.sub(r"\W+", "-", place.rsplit("/", 1)[-1]).strip("-") or "weights"
    return f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def explained(name: str) -> Generator[None]:
    """ModelError for whatever goes wrong where `name` is read: a network, a store and a disk have
    no common list of what they may raise."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and is_uri(name):
            reason = "there is nothing there"
        else:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            masked(
                f"the weights {name} cannot be fetched: {reason}. Check the address or name, the"
                " network, and the credentials in the environment of the node"
            )
        ) from None
