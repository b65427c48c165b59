"""The folder on this node that has a policy's weights.

folder  ->  itself
name on the hub, s3://, gs://  ->  a copy on this node, fetched once
"""

import glob
import hashlib
import os
import re
import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ModelError
from sirt_ray.logs import waiting
from sirt_ray.storage import object_store
from sirt_ray.storage.uri import is_uri, wrap_errors
from sirt_ray.training.tasks import Source

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""Files of a model that its tokenizer and configuration do not need."""


def on_hub(policy: Policy) -> bool:
    """Return whether the policy has a name as models on the hub have."""
    path = Path(policy.path)
    return not is_uri(policy.path) and not path.is_absolute() and not path.is_dir()


def located(source: Source, weights: bool = True) -> Source:
    """Return the model with its folder on this node, if it is in object storage; `weights=False`:
    without its weights, for its tokenizer and configuration. Raises ModelError."""
    if not is_uri(source.name):
        return source
    folder = local_folder(Policy("model", source.name, source.revision), weights)
    return replace(source, folder=str(folder))


def local_folder(policy: Policy, weights: bool = True) -> Path:
    """Return the folder on this node that has the policy's weights; fetch it if it is not there.

    Copies from object storage are kept under $SIRT_CACHE, or else `sirt-ray` in the user's cache
    folder: one for each content, the last 4 of each URI. Raises ModelError.
    """
    if is_uri(policy.path):
        with wrap_model_errors(policy.path):
            return _from_storage(policy.path, weights)
    if on_hub(policy):
        from huggingface_hub import snapshot_download

        with wrap_model_errors(policy.path), waiting(f"the hub's {policy.path}"):
            return Path(snapshot_download(policy.path, revision=policy.revision))
    return _existing(Path(policy.path))


def engine_path(policy: Policy) -> str:
    """Return the name on the hub, or else the folder on this node, by which vLLM finds the policy's
    weights. Raises ModelError."""
    if on_hub(policy):
        from huggingface_hub import constants

        # vLLM fetches from the hub what it needs and no more.
        if not _has_wildcard(constants.HF_HUB_CACHE):
            return policy.path
    return str(without_wildcards(local_folder(policy)))


@cache
def without_wildcards(folder: Path) -> Path:
    """Return a path of the folder without `[`, `*` and `?`: the folder itself, or a symbolic link
    that is there as long as this process.

    vLLM 0.29.0 looks for weights with `glob.glob(folder + "/*.safetensors")`
    (`model_loader/default_loader.py`): it would find none in such a folder, or those of another.
    """
    if not _has_wildcard(str(folder)):
        return folder
    target = str(folder.absolute())
    link = Path(_links().name) / hashlib.sha256(os.fsencode(target)).hexdigest()[:16]
    link.symlink_to(target, target_is_directory=True)
    return link


@cache
def _links() -> "tempfile.TemporaryDirectory[str]":
    """Return the folder of this process's links, which is deleted with the object."""
    parent = tempfile.gettempdir()
    return tempfile.TemporaryDirectory(
        prefix="sirt-weights-", dir="/tmp" if _has_wildcard(parent) else parent
    )


def _has_wildcard(path: str) -> bool:
    return glob.escape(path) != path


def names(uri: str) -> list[str]:
    """Return the names of the files below a URI. Raises ModelError."""
    with wrap_model_errors(uri):
        return sorted(object_store.list_unmarked(uri))


def wrap_model_errors(name: str) -> AbstractContextManager[None]:
    """Raise ModelError for whatever goes wrong while the model `name` is read."""
    return wrap_errors(
        f"the weights {name} cannot be fetched",
        ModelError,
        "Check the address or name, the network, and the credentials in the environment of the"
        " node",
    )


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelError(
            f"there is no folder {folder} on this node. Give a folder that every node sees, an"
            " address of object storage such as s3://, or a name on the hub"
        )
    return folder


def _from_storage(uri: str, weights: bool) -> Path:
    parts = urlsplit(uri)
    if parts.password or parts.query:
        # The message does not repeat the URI, which may have a key in it.
        raise ModelError(
            f"an address of weights ({parts.scheme}://...) has credentials or options in it."
            " Addresses are written to the run folder: put them into the environment of the nodes"
        )
    if parts.scheme == "file":
        return _existing(Path(unquote(parts.path)))
    found = object_store.list_unmarked(uri)
    if "config.json" not in found and "adapter_config.json" not in found:
        raise ModelError(
            f"there is no model in {uri}: it has neither config.json nor adapter_config.json."
            " Give the folder that holds the weights, and check that they were all uploaded"
        )
    skip = () if weights else _WEIGHTS
    return object_store.fetch_unmarked(uri, found, skip, _cache_name(uri))


def _cache_name(uri: str) -> str:
    """Return a name that all versions share: `.../round_01/student` and `.../round_02/student`."""
    every_round = re.sub(r"\bround_\d+\b", "*", uri.rstrip("/"))
    name = re.sub(r"\W+", "-", every_round.rsplit("/", 1)[-1]).strip("-") or "weights"
    return f"{name}-{hashlib.sha256(every_round.encode()).hexdigest()[:16]}"
