"""The API key of an endpoint, and the ASGI middleware that requires it.

The key is read from an environment variable, removed from the environment, and kept only as a
salted digest: what Ray sends to workers can be seen there, and must not contain the key.
"""

import hashlib
import hmac
import ipaddress
import json
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from sirt_ray.errors import ConfigError

DEFAULT_VARIABLE = "SIRT_API_KEY"

OPEN_PATHS = frozenset({"/health"})
"""Paths that need no key. All others do, including routes that a later engine adds."""

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]
"""An ASGI application."""

_UNAUTHORIZED = {
    "error": {
        "message": "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
}


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """Compares keys with the right one, in constant time."""

    variable: str
    """The environment variable that the key was read from."""
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, key: str, variable: str = DEFAULT_VARIABLE) -> "KeyCheck":
        """Return the check for a key, with a new salt."""
        salt = secrets.token_bytes(16)
        return cls(variable, salt, _digest(salt, key.encode()))

    def matches(self, key: bytes) -> bool:
        """Return whether this is the right key."""
        return hmac.compare_digest(_digest(self.salt, key), self.digest)


def _digest(salt: bytes, key: bytes) -> bytes:
    return hmac.digest(salt, key, hashlib.sha256)


def take_key(variable: str | None) -> KeyCheck | None:
    """Read the key from the environment variable and remove it from the environment, so that
    processes that are started later do not inherit it. Return None if there is no key.

    `variable` None means DEFAULT_VARIABLE, which may be unset. Raises ConfigError if a named
    variable is unset, or if the key cannot be sent in an HTTP header.
    """
    name = variable or DEFAULT_VARIABLE
    key = os.environ.pop(name, None)
    if key is None:
        if variable is None:
            return None
        raise ConfigError(
            f"--api-key-env {variable}: this environment variable is not set. Export the key in"
            " it, or leave the option out to serve without a key"
        )
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"the API key in {name} is empty, or has characters that an"
            " HTTP header cannot carry. Use letters, digits and punctuation"
        )
    return KeyCheck.of(key, name)


def open_host_warning(host: str, key: KeyCheck | None) -> str | None:
    """Return a warning if the endpoint is open to other machines without a key."""
    if key is not None or host == "localhost":
        return None
    try:
        if ipaddress.ip_address(host).is_loopback:
            return None
    except ValueError:
        pass  # A host's name: taken for one that others can reach.
    return (
        f"ANYONE who reaches {host} over the network can use this model: there is no API key. Stop"
        f" this, export one in {DEFAULT_VARIABLE} and start again, or serve on 127.0.0.1"
    )


class RequireKey:
    """ASGI middleware that answers 401 to requests without the key, if there is one."""

    def __init__(self, app: App, key: KeyCheck | None) -> None:
        self._app = app
        self._key = key

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if self._is_allowed(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _send_401(send)

    def _is_allowed(self, scope: Message) -> bool:
        if self._key is None or scope["type"] not in ("http", "websocket"):
            return True
        if scope["type"] == "http" and scope["path"] in OPEN_PATHS:
            return True
        return self._key.matches(_bearer(scope["headers"]))


def _bearer(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the token of the Authorization header. Without one it is empty, which never matches:
    a key is not empty."""
    for name, value in headers:
        if name.lower() == b"authorization":
            scheme, _, token = value.partition(b" ")
            return token.strip() if scheme.lower() == b"bearer" else b""
    return b""


async def _send_401(send: Callable[[Message], Awaitable[None]]) -> None:
    body = json.dumps(_UNAUTHORIZED).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
