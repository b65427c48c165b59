"""A fake of the Hugging Face hub: data sets and models from memory, over HTTP on this machine.

It answers the requests of `datasets` and `huggingface_hub` when one is loaded: a repository's
revision, listings of its files, and the files. Each repository has one revision only.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Repository:
    revision: str
    """A commit or a reference."""
    files: Mapping[str, bytes]
    """Path -> content."""
    gated: bool = False
    """Whether the hub shows the repository, but refuses to send its files."""

    @property
    def commit(self) -> str:
        named = len(self.revision) == 40
        return self.revision if named else hashlib.sha1(self.revision.encode()).hexdigest()

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return files and folders as the hub lists them."""
        folders = {
            path[:at] for path in self.files for at, letter in enumerate(path) if letter == "/"
        }
        found = {path: {"type": "directory", "path": path, "oid": _oid(b"")} for path in folders}
        for path, content in self.files.items():
            found[path] = {
                "type": "file",
                "path": path,
                "oid": _oid(content),
                "size": len(content),
            }
        return found


class _NotFoundError(Exception):
    """The message is the hub's error code."""


class _GatedError(Exception):
    """The repository's files are sent only to users with access."""


@contextmanager
def hub(repositories: Mapping[str, Repository]) -> Iterator[str]:
    """Yield the URL of a hub with these repositories: `<owner>/<name>` -> repository."""

    class Handler(_Handler):
        known = repositories

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    known: Mapping[str, Repository]

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        url = urlsplit(self.path)
        try:
            found = self._found(unquote(url.path).strip("/"), parse_qs(url.query), parse_qs(body))
        except _NotFoundError as error:
            self._send(404, b"", {"X-Error-Code": str(error)})
            return
        except _GatedError:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        if isinstance(found, tuple):
            commit, content = found
            self._send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{_oid(content)}"'})
        else:
            self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _found(
        self, path: str, query: Mapping[str, list[str]], form: Mapping[str, list[str]]
    ) -> Any:
        """Return JSON, or the commit and the content of a file."""
        # The paths of a model's files have no prefix.
        path = path.removeprefix("api/").removeprefix("datasets/").removeprefix("models/")
        name = "/".join(path.split("/")[:2])
        if name not in self.known:
            raise _NotFoundError("RepoNotFound")
        repository = self.known[name]
        _, _, inside_name = path.partition(name)
        what, _, rest = inside_name.strip("/").partition("/")
        for revision in (repository.revision, repository.commit):
            if what and (rest == revision or rest.startswith(f"{revision}/")):
                inside = rest.removeprefix(revision).strip("/")
                break
        else:
            raise _NotFoundError("RevisionNotFound")
        entries = repository.entries()
        if what == "revision":
            siblings = [{"rfilename": file} for file in repository.files]
            return {"id": name, "sha": repository.commit, "siblings": siblings}
        if what == "paths-info":
            return [entries[path] for path in form.get("paths", []) if path in entries]
        if what == "tree":
            below = {path: e for path, e in entries.items() if path.startswith(f"{inside}/")}
            below = below if inside else entries
            if not below:
                raise _NotFoundError("EntryNotFound")
            deep = query.get("recursive", [""])[0].lower() == "true"
            depth = inside.count("/") + bool(inside)
            return [e for path, e in below.items() if deep or path.count("/") == depth]
        if what == "resolve" and repository.gated:
            raise _GatedError
        if what != "resolve" or inside not in repository.files:
            raise _NotFoundError("EntryNotFound")
        return repository.commit, repository.files[inside]

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
