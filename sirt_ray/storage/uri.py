"""Addresses in object storage: what may stand in one, and what is said when one cannot be used."""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import urlsplit

from sirt_ray.errors import ConfigError, SirtError

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
"""What is found in an error -> what it means and what to do."""


def is_uri(place: str) -> bool:
    return "://" in place


def checked(uri: str) -> str:
    """The address, where it can name a folder of ours. Raises ConfigError; its message does not
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
            f"{uri} is no address in storage that runs can lie in: it does not begin with {known}."
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
    """A model's name; where it is an address, one without credentials. Raises ConfigError."""
    if is_uri(name) and urlsplit(name).scheme in SCHEMES:
        checked(name)
    return name


def checked_output(output: str) -> str:
    """A folder, or an address where runs can lie. Raises ConfigError."""
    return checked(output) if is_uri(output) else output


def masked(text: str) -> str:
    """The text without what an address or the environment holds of secrets."""
    text = _OPTIONS.sub(r"\1***", _IN_ADDRESS.sub(r"\1***@", text))
    for secret in filter(None, map(os.environ.get, _SECRETS)):
        text = text.replace(secret, "***")
    return text


@contextmanager
def explained(what: str, kind: type[SirtError]) -> Generator[None]:
    """`kind` for whatever goes wrong with a storage: a network, a store and a disk have no common
    list of what they may raise."""
    try:
        yield
    except SirtError:
        raise
    except (OSError, ValueError) as error:
        told = str(error)
        for pattern, advice in _ADVICE.items():
            if re.search(pattern, told):
                raise kind(masked(f"{what}: {advice}")) from None
        reason = (told.strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise kind(masked(f"{what}: {reason}. What is finished is kept")) from None
