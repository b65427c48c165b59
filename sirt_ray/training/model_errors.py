"""Why a model could not be loaded, as the libraries report it, and what to do about it.

They raise OSError or ValueError for everything; the cause, where there is one, says which it is.
"""

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_PROBE_SECONDS = 5.0


def hub_unreachable() -> str | None:
    """Why the hub cannot be reached; None where it can, or where a proxy stands between. Asked
    first, because the libraries try for half a minute, file by file."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    parts = urlsplit(constants.ENDPOINT)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return None
    try:
        socket.create_connection((host, port), _PROBE_SECONDS).close()
    except OSError as error:
        return f"{constants.ENDPOINT} does not answer ({error})"
    return None


def why_not_loaded(model: str, error: Exception) -> str:
    """`model cannot be loaded: why. What to do`."""
    why, cure = _files(error) if Path(model).is_dir() else _hub(model, error)
    return f"{model} cannot be loaded: {why}. {cure}"


def _hub(model: str, error: Exception) -> tuple[str, str]:
    from huggingface_hub import constants, errors, get_token

    causes = list(_causes(error))

    def is_one(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_one(errors.GatedRepoError):
        locked = "the token that is set does not open it" if get_token() else "no token is set"
        return (
            f"it is gated, and {locked}",
            f"Ask for access at {constants.ENDPOINT}/{model}, then set a token of the same account"
            " in HF_TOKEN, or with `hf auth login`",
        )
    if is_one(errors.RevisionNotFoundError):
        return "the hub has the model, but not this revision", "Correct or remove `revision`"
    if is_one(errors.RepositoryNotFoundError, errors.HFValidationError):
        return (
            f"{constants.ENDPOINT} has no model of this name, or it is private",
            "Check the spelling (owner/name); for a private one set a token in HF_TOKEN; a folder"
            " is given by its path, as in ./model",
        )
    if (down := hub_unreachable()) is not None:
        return (
            f"it is not in the hub's cache on this machine, and {down}",
            "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or download the model elsewhere and"
            " give its folder",
        )
    return _files(error)


def _files(error: Exception) -> tuple[str, str]:
    said = _first_line(error)
    if "custom code" in said or "trust_remote_code" in said:
        return (
            "it brings code of its own, which is never run",
            "Choose a model whose architecture `transformers` itself has",
        )
    if "does not recognize this architecture" in said:
        return (
            "the installed `transformers` does not know its architecture (model_type in"
            " config.json)",
            "Choose another model, or check config.json",
        )
    if "tokenizer" in said:
        return (
            f"it has no tokenizer that can be read ({said})",
            "Put one beside config.json with `tokenizer.save_pretrained`, or copy tokenizer.json"
            " and tokenizer_config.json there",
        )
    return said, "Look at its config.json and tokenizer.json, or download the folder again"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(" .:")
