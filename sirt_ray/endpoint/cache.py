"""Paid answers on disk, so that none is paid for twice.

    <folder>/<first two digits of the key>/<key>.json      {"request": ..., "reply": ...}

A key is the hash of everything that decides the answer, so entries are never changed. What cannot
be read, or answers another request than its name says, is as good as not there.
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
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """The answers in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, request: Json) -> Reply | None:
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
        return reply if reply.choices else None

    def put(self, request: Json, reply: Reply) -> None:
        """Atomically: a killed process leaves an entry that is whole, or none."""
        path = self._path(request)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"request": request, "reply": REPLY.dump_python(reply, mode="json")})

    def _path(self, request: Json) -> Path:
        key = key_of(request)
        return self._folder / key[:2] / f"{key}.json"
