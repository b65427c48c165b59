"""A stand-in for the Hugging Face hub that takes uploads, over HTTP on this machine.

The hub is not ours. This one speaks what `huggingface_hub` asks for when a folder is uploaded (a
new repository, branches, which files go which way, a commit of several files) and takes every file
the plain way; that large ones go to the hub's object storage is the library's own affair.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


@dataclass
class Receiver:
    """What a hub has and has been told. `writers`: tokens that may write, and whom they are of."""

    writers: dict[str, str]
    readers: tuple[str, ...] = ()
    """Tokens that are known, and may not write."""
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """Repository -> branch -> path -> content."""
    private: set[str] = field(default_factory=set)
    address: str = ""


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", name: str = "") -> None:
        super().__init__(status)
        self.status, self.code, self.name = status, code, name


@contextmanager
def receiver(writers: dict[str, str], readers: tuple[str, ...] = ()) -> Iterator[Receiver]:
    hub = Receiver(writers, readers)

    class Handler(_Handler):
        receiver = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nobody reads it."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            status, found = 200, self._done(unquote(urlsplit(self.path).path).strip("/"), body)
            code = ""
        except _RefusedError as error:
            status, code = error.status, error.code
            found = {"error": "no", "url": f"{self.receiver.address}{error.name}"}
        content = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _done(self, path: str, body: bytes) -> Any:
        if path == "api/validate-yaml":
            return {"errors": [], "warnings": []}
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        hub = self.receiver
        owner = hub.writers.get(token)
        if owner is None and token not in hub.readers:
            raise _RefusedError(401)
        if path == "api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or owner}/{given['name']}"
            self._check(owner, name)
            if name in hub.repositories:
                raise _RefusedError(409, name=f"/{name}")
            hub.repositories[name] = {"main": {}}
            if given.get("private") or given.get("visibility") == "private":
                hub.private.add(name)
            return {"url": f"{hub.address}/{name}", "name": name}
        if path.count("/") < 4:
            raise _RefusedError(404)
        _, _, user, repository, what, *rest = path.split("/")
        name = f"{user}/{repository}"
        if name not in hub.repositories:
            raise _RefusedError(404, "RepoNotFound")
        self._check(owner, name)
        branches, branch = hub.repositories[name], "/".join(rest)
        if what == "branch":
            if branch in branches:
                raise _RefusedError(409)
            branches[branch] = dict(branches["main"])
            return {}
        if what == "revision":
            return {"id": name, "sha": COMMIT, "siblings": []}
        if what == "preupload":
            return {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
            }
        assert what == "commit", path
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                branches[branch][line["value"]["path"]] = content
        return {"commitUrl": f"{hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}

    def _check(self, owner: str | None, name: str) -> None:
        if owner != name.partition("/")[0]:
            raise _RefusedError(403)
