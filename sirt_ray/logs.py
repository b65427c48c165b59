"""What a run tells while it works, through the standard library's `logging`.

    tell(logging.WARNING, "a call failed", event="call_failed", attempt=2)

Every module tells the logger `sirt_ray`; who wants to hear it adds a handler (`heard_by`). A line
for a machine is JSON: time, level, run, round, stage, message, event and the fields.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from sirt_ray.place import here

LOG = logging.getLogger("sirt_ray")

FORMAT_VARIABLE = "SIRT_LOG"
"""Of the environment. `json`: on standard output there are JSON lines, and nothing for a person."""

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""Characters. A shorter value would be found in innocent words."""


def as_json() -> bool:
    return os.environ.get(FORMAT_VARIABLE, "").lower() == "json"


def tell(level: int, message: str, event: str | None = None, **fields: Any) -> None:
    """`event` names what is worth keeping in a run's `events.jsonl`; `fields` are JSON values."""
    if LOG.isEnabledFor(level):
        LOG.handle(record(level, message, event, **fields))


def record(
    level: int, message: str, event: str | None = None, /, **fields: Any
) -> logging.LogRecord:
    """A record of the logger, with the place where this is called."""
    extra = {**asdict(here()), "event": event, "fields": fields}
    return LOG.makeRecord(LOG.name, level, "", 0, message, (), None, extra=extra)


@contextmanager
def heard_by(handler: logging.Handler) -> Generator[None]:
    """All that this process tells while the block runs goes to `handler`, too."""
    before = LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        LOG.setLevel(before)
        LOG.removeHandler(handler)


class Said(logging.Handler):
    """Passes on what a person should know."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


class JsonFormatter(logging.Formatter):
    """One JSON object on one line. The values of environment variables that are named like secrets
    are blotted out, wherever they have come from."""

    def format(self, record: logging.LogRecord) -> str:
        told = record.__dict__
        line: dict[str, Any] = {
            "time": utc(record.created),
            "level": record.levelname,
            **{name: told.get(name, "") for name in ("run", "round", "stage")},
            "message": record.getMessage(),
        }
        if told.get("event"):
            line["event"] = told["event"]
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps(line | {"fields": told.get("fields", {})}, default=str))


def utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def without_secrets(text: str) -> str:
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET.search(name):
            # As it stands in JSON, which has its own way with quotes and backslashes.
            text = text.replace(json.dumps(value)[1:-1], "***")
    return text
