"""Cache of paid replies on disk, so that no reply is paid for twice.

    <folder>/<first two digits of the key>/<key>.json      {"request": ..., "reply": ...}

A key is the hash of everything that determines the reply, so entries never change. An entry that
cannot be read, that holds another request than its name, or whose reply is not final, is a cache
miss.
"""

import hashlib
import json
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from sirt_ray.endpoint.replies import REPLY, Reply
from sirt_ray.endpoint.request import Json
from sirt_ray.storage.atomic import write_json


def key_of(request: Json) -> str:
    """Return the cache key of a request: a SHA-256 hash."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """The cached replies in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, request: Json) -> Reply | None:
        """Return the cached reply; None on a cache miss."""
        try:
            entry = json.loads(self._path(request).read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(entry, dict):
            return None
        found = cast(Json, entry)
        if found.get("request") != request:
            return None
        try:
            reply = REPLY.validate_python(found.get("reply"))
        except ValidationError:
            return None
        return reply if reply.is_final else None

    def put(self, request: Json, reply: Reply) -> None:
        """Write a reply atomically: a killed process leaves a complete entry, or none."""
        path = self._path(request)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"request": request, "reply": REPLY.dump_python(reply, mode="json")})

    def _path(self, request: Json) -> Path:
        key = key_of(request)
        return self._folder / key[:2] / f"{key}.json"
