"""Structured logs of a run, through the standard library's `logging`.

    with in_run("mine"), at_artifact("round_01/pairs"):
        log_event(logging.WARNING, "a call failed", event="call_failed", attempt=2)

All modules log to the logger `sirt_ray`, with the log context (run, round, stage) of the code that
is running; `attached_handler` adds a receiver. As JSON a line has time, level, run, round, stage,
message, event and the fields.

A wait is logged too, if it is long (`waiting`): after half a minute, and then less and less often.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

LOG = logging.getLogger("sirt_ray")

FORMAT_VARIABLE = "SIRT_LOG"
"""Environment variable. `json`: standard output has JSON lines and nothing for a person."""

FIRST_SECONDS = 30.0
"""A wait is logged for the first time after so long."""
_LONGEST_PAUSE_SECONDS = 600.0
_TIMES_THE_USUAL = 3.0
"""A repeated wait is late once it takes so many times the longest one before it."""

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""In characters. A shorter value would be found in innocent words."""

Item = TypeVar("Item")


# Log context: the labels of log lines and metrics.


@dataclass(frozen=True, slots=True)
class LogContext:
    """The part of a run that is at work. An empty field is unknown.

    Context variables are not inherited by threads or processes: whoever starts one passes the
    context on (`start_thread`, `bind_context`).

    Example::

        LogContext("mine", "round_01", "pairs")     # in the example of the module
    """

    run: str = ""
    """The job's name."""
    round: str = ""
    """`round_01`, or the model that is evaluated: `teacher`, `baseline`. Empty for what all rounds
    have in common."""
    stage: str = ""
    """The artifact that is built: `questions`, `demonstrations`, `samples`, `pairs`, `reference`,
    `student`, `evaluation`."""


_context: ContextVar[LogContext] = ContextVar("log_context")
_NO_CONTEXT = LogContext()


def current_context() -> LogContext:
    """Return the log context of the code that is running."""
    return _context.get(_NO_CONTEXT)


@contextmanager
def bind_context(context: LogContext) -> Generator[None]:
    """Use this log context while the block runs."""
    before = _context.set(context)
    try:
        yield
    finally:
        _context.reset(before)


@contextmanager
def in_run(run: str) -> Generator[None]:
    """Use the log context of a run while the block runs."""
    with bind_context(LogContext(run)):
        yield


@contextmanager
def at_artifact(name: str) -> Generator[None]:
    """Use the log context of an artifact while the block runs. `name`: its path below the run
    folder."""
    round_name, _, stage = name.rpartition("/")
    with bind_context(replace(current_context(), round=round_name, stage=stage)):
        yield


def start_thread(work: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread with the log context of its starter."""
    thread = threading.Thread(target=copy_context().run, args=(work,), name=name, daemon=True)
    thread.start()
    return thread


# Events and their handlers.


def as_json() -> bool:
    """Return whether standard output is to have JSON lines (`SIRT_LOG=json`)."""
    return os.environ.get(FORMAT_VARIABLE, "").lower() == "json"


def log_event(level: int, message: str, event: str | None = None, **fields: Any) -> None:
    """Log a message. `event` names what is to be kept in the run's `events.jsonl`; `fields` are
    JSON values."""
    if LOG.isEnabledFor(level):
        LOG.handle(record(level, message, event, **fields))


def record(
    level: int, message: str, event: str | None = None, /, **fields: Any
) -> logging.LogRecord:
    """Return a log record of `LOG` with the current log context."""
    extra = {**asdict(current_context()), "event": event, "fields": fields}
    return LOG.makeRecord(LOG.name, level, "", 0, message, (), None, extra=extra)


@contextmanager
def attached_handler(handler: logging.Handler) -> Generator[None]:
    """Pass everything that this process logs to `handler`, too, while the block runs."""
    before = LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        LOG.setLevel(before)
        LOG.removeHandler(handler)


class CallbackHandler(logging.Handler):
    """Passes the messages of warnings and errors to a function."""

    def __init__(self, callback: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._callback = callback

    def emit(self, record: logging.LogRecord) -> None:
        self._callback(record.getMessage())


class JsonFormatter(logging.Formatter):
    """One JSON object on one line. The values of environment variables with names of secrets are
    masked in it, whatever their origin."""

    def format(self, record: logging.LogRecord) -> str:
        attributes = record.__dict__
        line: dict[str, Any] = {
            "time": utc(record.created),
            "level": record.levelname,
            **{name: attributes.get(name, "") for name in ("run", "round", "stage")},
            "message": record.getMessage(),
        }
        if attributes.get("event"):
            line["event"] = attributes["event"]
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line["fields"] = attributes.get("fields", {})
        return without_secrets(json.dumps(line, default=str))


def utc(seconds: float) -> str:
    """Return a Unix time as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def without_secrets(text: str) -> str:
    """Return the text with the values of secret environment variables masked."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET.search(name):
            # In JSON a value has its quotes and backslashes escaped.
            text = text.replace(json.dumps(value)[1:-1], "***")
    return text


# Waits that report.


class Wait:
    """One wait, or a series of waits for the same kind of thing, each ended by `moved`.

    `missing` returns what is still missing, as far as can be known; another thread calls it.
    `limit_s`: seconds after which the wait is `over`; None: never.
    """

    def __init__(
        self,
        what: str,
        missing: Callable[[], str] | None = None,
        limit_s: float | None = None,
        first_s: float = FIRST_SECONDS,
    ) -> None:
        self._what, self._missing, self._limit_s = what, missing, limit_s
        self._first_s = first_s
        self._usual = 0.0
        self._start = time.monotonic()
        self._next = self._start + first_s

    @property
    def seconds(self) -> float:
        """How long the current wait has lasted."""
        return time.monotonic() - self._start

    @property
    def over(self) -> bool:
        """Whether the current wait has lasted longer than `limit_s`."""
        return self._limit_s is not None and self.seconds > self._limit_s

    def moved(self, what: str | None = None) -> None:
        """End the current wait and start the next one, for `what` or for the same again."""
        now = time.monotonic()
        if what is None:
            self._usual = max(self._usual, now - self._start)
        else:
            self._what = what
        self._start = now
        late = min(_TIMES_THE_USUAL * self._usual, _LONGEST_PAUSE_SECONDS)
        self._next = now + max(self._first_s, late)

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items that are waited for, one after the other."""
        for item in items:
            self.moved()
            yield item

    def log_if_due(self) -> float:
        """Log what is waited for, if it is time to. Return the seconds until the next time."""
        now = time.monotonic()
        if now >= self._next:
            seconds = now - self._start
            self._next = now + min(seconds, _LONGEST_PAUSE_SECONDS)
            log_event(
                logging.WARNING, self.text, "waiting", what=self._what, seconds=round(seconds)
            )
        return max(0.0, self._next - time.monotonic())

    @property
    def text(self) -> str:
        """What is waited for, for how long, and what is missing."""
        since = f"waiting for {self._what} since {self.seconds:.0f} s"
        if self._missing is None:
            return since
        try:
            missing = self._missing()
        except Exception as error:  # a query may fail for the very reason of the wait
            missing = f"why is not known ({type(error).__name__})"
        return f"{since}: {missing}" if missing else since


@contextmanager
def waiting(
    what: str,
    missing: Callable[[], str] | None = None,
    limit_s: float | None = None,
    first_s: float = FIRST_SECONDS,
) -> Generator[Wait]:
    """Log what the block waits for from time to time, whatever it is blocked in.

    Examples::

        with waiting("the student engine", missing=lambda: "it needs 1 GPU; free now: 0") as wait:
            while not ready():
                if wait.over: ...            # where there is a limit
                time.sleep(0.2)

        with waiting("the next block") as wait:
            for block in wait.each(blocks): ...
    """
    wait, done = Wait(what, missing, limit_s, first_s), threading.Event()

    def log_until_done() -> None:
        # `moved` may bring the next time forward during the sleep.
        while not done.wait(min(wait.log_if_due(), first_s)):
            pass

    start_thread(log_until_done, f"waiting for {what}")
    try:
        yield wait
    finally:
        done.set()
