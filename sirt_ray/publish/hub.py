"""An exported folder -> a repository of the Hugging Face hub.

The token is the one that `huggingface_hub` finds (HF_TOKEN, or `hf auth login`). It is neither an
argument nor printed.
"""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sirt_ray.errors import InputError, ModelError, ResourceError
from sirt_ray.logs import without_secrets
from sirt_ray.publish.adapters import CONFIG
from sirt_ray.storage.uri import is_uri, masked


@dataclass(frozen=True, slots=True)
class Target:
    """Where to upload."""

    repo_id: str
    """`owner/name`."""
    private: bool = False
    revision: str | None = None
    """A branch of a repository that may exist already; None: the repository is a new one."""


class HubError(ResourceError):
    """The hub did not accept the upload."""


def check(target: Target) -> None:
    """Raise InputError for an invalid name, or if there is no token."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(target.repo_id)
    except HFValidationError as error:
        raise InputError(
            f"{target.repo_id} is not a valid name of a repository: {error}"
        ) from error
    if "/" not in target.repo_id:
        raise InputError(
            f"{target.repo_id} has no owner. Give OWNER/NAME, as in me/{target.repo_id}"
        )
    if get_token() is None:
        raise InputError(
            "there is no token for the Hugging Face hub. Log in with `hf auth login`, or set"
            " HF_TOKEN, to a token that may write (https://huggingface.co/settings/tokens)"
        )


def upload(folder: Path, target: Target) -> str:
    """Upload a folder, and return its address. Raises ModelError if it has no model that others can
    load, HubError if the hub does not accept it."""
    from huggingface_hub import HfApi

    _check_folder(folder)
    api = HfApi()
    with _wrap_errors(target):
        repo = target.repo_id
        api.create_repo(repo, private=target.private, exist_ok=target.revision is not None)
        if target.revision not in (None, "main"):
            api.create_branch(repo, branch=target.revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=target.revision,
            commit_message="Upload a student of sirt-ray",
        )
    return done.commit_url


def _check_folder(folder: Path) -> None:
    adapter = folder / CONFIG
    if not adapter.is_file():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder} has no model (no config.json and no {CONFIG}), and is not a run's"
                " folder (no config.yaml). Give a run's folder, or one of `sirt export`"
            )
        return
    base = str(json.loads(adapter.read_text())["base_model_name_or_path"])
    if Path(base).is_absolute() or Path(base).exists() or is_uri(base):
        raise ModelError(
            f"the adapter's base is the folder {masked(base)}, which others do not have. Push the"
            " whole model (--merge), or set base_model_name_or_path to a name on the hub"
        )


@contextmanager
def _wrap_errors(target: Target) -> Generator[None]:
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]: of the client that it uses
        OfflineModeIsEnabled,
    )

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError("HF_HUB_OFFLINE is set, so the hub is not used. Unset it to push") from error
    except HfHubHTTPError as error:
        raise HubError(_refused(error.response.status_code, target, str(error))) from error
    except (HTTPError, ConnectionError) as error:
        raise HubError(
            f"the hub cannot be reached: {_first_line(str(error))}. Check the network and, where"
            " there is one, the proxy (HTTPS_PROXY) or HF_ENDPOINT. Retry with the same command,"
            " or with `--revision main` if the repository was created already"
        ) from error


def _refused(status: int, target: Target, reason: str) -> str:
    repo = target.repo_id
    if status == 409:
        return (
            f"{repo} exists already; nothing was uploaded. Give another name, or a branch of it:"
            " --revision main, or a new one"
        )
    if status == 401:
        return (
            f"the hub does not know the token that was sent for {repo}. Log in again with `hf auth"
            " login`, or correct HF_TOKEN"
        )
    if status == 403:
        return (
            f"the token may not write to {repo}. Give one of the role `write` for"
            f" {repo.partition('/')[0]} (https://huggingface.co/settings/tokens), or another name"
        )
    return f"the hub refused {repo} (status {status}): {_first_line(reason)}"


def _first_line(text: str) -> str:
    return without_secrets((text.strip().splitlines() or ["no reason was given"])[0])
