"""URIs in object storage: which are valid, and the errors of those that cannot be used."""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from sirt_ray.errors import ConfigError, SirtError, StorageError

SCHEMES = ("s3", "gs")
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_IN_ADDRESS = re.compile(r"(\w+://)[^\s/@]*@")
_OPTIONS = re.compile(r"((?:s3|gs)://[^\s?]*\?)[^\s,;]*")
_ADVICE = {
    r"NO_SUCH_BUCKET|[Bb]ucket .*(not exist|not found)": "there is no such bucket. Create it, or"
    " correct the address",
    r"ACCESS_DENIED|ACCESS_KEY|SIGNATURE|EXPIRED_TOKEN|INVALID_TOKEN|[Ff]orbidden|UNAUTHENTICATED"
    r"|PERMISSION_DENIED": "the storage refuses the credentials in this process's environment. Set"
    " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for gs:// GOOGLE_APPLICATION_CREDENTIALS, on"
    " every node, and let them read and write there",
    r"NETWORK_CONNECTION|curlCode|[Cc]ould not connect": "the storage cannot be reached. Check the"
    " network and, for a storage that is not Amazon's, AWS_ENDPOINT_URL on every node",
}
"""Pattern in an error's text -> what it means and what to do."""


def is_uri(text: str) -> bool:
    """Return whether the text is a URI rather than a path or a name."""
    return "://" in text


def user_path(path: str | Path) -> Path:
    """Return a path that a user has written, with `~` for the home folder as a shell has it. That
    of a user who does not exist stays as it is."""
    return Path(os.path.expanduser(path))


def checked(uri: str) -> str:
    """Return the URI if it can name a folder of a run. Raises ConfigError; the message does not
    repeat what may be a key."""
    parts = urlsplit(uri)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"an address in storage ({parts.scheme}://...) has credentials or options in it, and"
            " addresses are written to the run folder. Put them into the environment of the nodes:"
            " AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL"
        )
    if parts.scheme not in SCHEMES:
        known = " or ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ConfigError(
            f"{uri} is no address in storage where runs can be kept: it does not start with"
            f" {known}."
            " Folders on disks that all nodes share are given as paths"
        )
    names = parts.path.strip("/").split("/")
    if not parts.netloc or any(name in (".", "..") or not name for name in names if len(names) > 1):
        raise ConfigError(
            f"{uri} names no folder in storage. Give {parts.scheme}://bucket/folder, without empty"
            " names and without '..'"
        )
    return uri


def checked_model(name: str) -> str:
    """Return a model's name, and a folder with the user's home in the place of `~`. Raises
    ConfigError for a URI with credentials in it."""
    if is_uri(name) and urlsplit(name).scheme in SCHEMES:
        checked(name)
    return os.path.expanduser(name)


def checked_output(output: str) -> str:
    """Return a folder, or a URI where runs can be kept. Raises ConfigError for any other URI."""
    return checked(output) if is_uri(output) else output


def masked(text: str) -> str:
    """Return the text without the secrets of a URI in it or of the environment."""
    text = _OPTIONS.sub(r"\1***", _IN_ADDRESS.sub(r"\1***@", text))
    for secret in filter(None, map(os.environ.get, _SECRETS)):
        text = text.replace(secret, "***")
    return text


@contextmanager
def wrap_errors(what: str, kind: type[SirtError], advice: str | None = None) -> Generator[None]:
    """Raise `kind` for whatever goes wrong with a storage: a network, a store and a disk have no
    common list of what they may raise. `advice` replaces that of known errors."""
    try:
        yield
    except StorageError as error:
        raise (error if issubclass(kind, StorageError) else kind(str(error))) from None
    except SirtError:
        raise
    except (OSError, ValueError) as error:
        text = str(error)
        for pattern, known in _ADVICE.items():
            if advice is None and re.search(pattern, text):
                raise kind(masked(f"{what}: {known}")) from None
        if isinstance(error, FileNotFoundError) and is_uri(what):
            reason = "there is nothing there"
        else:
            reason = (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise kind(masked(f"{what}: {reason}. {advice or 'What is finished is kept'}")) from None
