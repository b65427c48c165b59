"""Host and port of an endpoint's HTTP server, with the checks that run on its machine."""

import errno
import http.client
import json
import shlex
import socket
from dataclasses import dataclass

from sirt_ray.errors import ResourceError

_CONNECTION_TIMEOUT_SECONDS = 5.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}

_EXAMPLE_QUESTION = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Host and port that the HTTP proxy binds to: on this machine or, on a cluster, on its head
    node."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The `base_url` for a client on that machine."""
        host = _WILDCARDS.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"

    def require_free(self) -> None:
        """Raise ResourceError if this process cannot listen on the address. Call it before Serve is
        started: Serve silently shares a port with another Serve."""
        error = self.bind_error()
        if error is not None:
            raise ResourceError(error)

    def bind_error(self) -> str | None:
        """Return why this process cannot listen on the address; None if it can."""
        where = f"port {self.port} of {self.host}"
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[0]
            with socket.socket(family, kind, protocol) as listener:
                # Connections that a stopped server has left behind do not block the port.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return (
                    f"{where} is taken: another program listens there. Stop it, or choose another"
                    " port with --port"
                )
            return (
                f"cannot listen on {where}: {error}. Give --host an address of this machine, and"
                " --port a number that you may use"
            )
        return None

    def is_healthy(self) -> bool:
        """Return whether GET /health succeeds now."""
        host = _WILDCARDS.get(self.host, self.host)
        connection = http.client.HTTPConnection(
            host, self.port, timeout=_CONNECTION_TIMEOUT_SECONDS
        )
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def example_request(self, model: str, key_variable: str | None) -> str:
        """Return a curl command that sends one request. `key_variable` is the environment variable
        with the API key, if there is one."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": _EXAMPLE_QUESTION}],
            "max_tokens": 100,
            "temperature": 0,
        }
        lines = [f"curl {self.url}/chat/completions", "-H 'Content-Type: application/json'"]
        if key_variable is not None:
            lines.append(f'-H "Authorization: Bearer ${key_variable}"')
        return " \\\n  ".join([*lines, f"-d {shlex.quote(json.dumps(body))}"])
