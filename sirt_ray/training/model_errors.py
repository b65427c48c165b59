"""Why a model cannot be loaded: what can be checked before, and what the libraries' errors mean.

`transformers`, `huggingface_hub`, `safetensors` and the packages of quantised formats have no
common list of what they raise; the cause, where there is one, identifies it.
"""

import importlib.util
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from sirt_ray.errors import ModelError, ResourceError, SirtError

_PROBE_SECONDS = 5.0
"""Timeout of the connection that tests whether the hub can be reached."""


def check_quantization(on_gpu: bool) -> None:
    """Raise ResourceError if a training worker could not load a model in 4 bits (QLoRA)."""
    missing = [] if on_gpu else ["a GPU for every training worker"]
    if importlib.util.find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes (pip install 'sirt-ray[qlora]')")
    if missing:
        raise ResourceError(
            f"lora.quantize is set (QLoRA), which needs {' and '.join(missing)}. Provide that, or"
            " remove lora.quantize to train LoRA on the base as it is"
        )


def hub_unreachable() -> str | None:
    """Return why the hub cannot be reached; None if it can, or if a proxy is used to reach it.

    This is checked first, because the libraries retry for half a minute, file by file.
    """
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


@contextmanager
def loading(model: str) -> Generator[None]:
    """Raise ModelError for whatever a library raises while it loads `model`: the files and the name
    are the user's to mend. Too little memory passes as it is."""
    try:
        yield
    except (SirtError, MemoryError):
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise
        raise ModelError(why_not_loaded(model, error)) from error


def _is_out_of_memory(error: Exception) -> bool:
    """torch has an exception class for GPU memory; for host memory only the message says so."""
    return type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)


def why_not_loaded(model: str, error: Exception) -> str:
    """Return `<model> cannot be loaded: <reason>. <what to do>`."""
    reason, cure = _folder_problem(error) if Path(model).is_dir() else _hub_problem(model, error)
    return f"{model} cannot be loaded: {reason}. {cure}"


def _hub_problem(model: str, error: Exception) -> tuple[str, str]:
    """Return the reason why a model of the hub cannot be loaded, and what to do about it."""
    from huggingface_hub import constants, errors, get_token

    causes = list(_causes(error))

    def is_one(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_one(errors.GatedRepoError):
        locked = "the token that is set does not open it" if get_token() else "no token is set"
        return (
            f"it is gated, and {locked}",
            f"Request access at {constants.ENDPOINT}/{model}, then set a token of the same account"
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
            "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or download the model on another"
            " machine and give its folder",
        )
    return _folder_problem(error)


def _folder_problem(error: Exception) -> tuple[str, str]:
    """Return the reason why a model's files cannot be loaded, and what to do about it."""
    message = _first_line(error)
    if "custom code" in message or "trust_remote_code" in message:
        return (
            "it brings code of its own, which is never run",
            "Choose a model whose architecture `transformers` itself has",
        )
    if "does not recognize this architecture" in message:
        return (
            "the installed `transformers` does not know its architecture (model_type in"
            " config.json)",
            "Choose another model, or check config.json",
        )
    if isinstance(error, ImportError):
        return (
            f"a package for its format is not installed ({message})",
            "Install that package, or choose the model in its original format",
        )
    if "tokenizer" in message:
        return (
            f"it has no tokenizer that can be read ({message})",
            "Put one next to config.json with `tokenizer.save_pretrained`, or copy tokenizer.json"
            " and tokenizer_config.json there",
        )
    return message, "Look at its config.json and tokenizer.json, or download the folder again"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it was raised from, innermost last."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(" .:")
