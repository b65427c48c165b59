"""Files of JSON lines, which another process may be writing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class JsonLines:
    rows: tuple[dict[str, Any], ...]
    """The objects, in order."""
    broken: int = 0
    """Lines that are no JSON object. A last line without its end is still being written, and is
    none of them."""
    end: int = 0
    """Bytes behind the last whole line: where to read on."""


def json_lines(path: Path, start: int = 0) -> JsonLines:
    """The whole lines of a file from the byte `start` on; none where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            text = file.read()
    except FileNotFoundError:
        return JsonLines((), end=start)
    whole = text[: text.rfind(b"\n") + 1]
    found = [_object(line) for line in whole.splitlines() if line.strip()]
    rows = tuple(row for row in found if row is not None)
    return JsonLines(rows, len(found) - len(rows), start + len(whole))


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        return None
    return found if isinstance(found, dict) else None
