"""What a run tells while it works, through the standard library's `logging`.

    tell(logging.WARNING, "a call failed", event="call_failed", attempt=2)

Every module tells the logger `sirt_ray`; who wants to hear it adds a handler (`heard_by`). A line
for a machine is JSON: time, level, run, round, stage, message, event and the fields.
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

# FOLDED place: Where in a run something happens: what log lines and metrics are labelled with.
#
#     with in_run("mine"):
#         with at_artifact("round_01/pairs"):
#             here()                           # Place("mine", "round_01", "pairs")
#
# A thread begins nowhere, and a process too: what starts one hands its place over (`thread_here`,
# `at`).


@dataclass(frozen=True, slots=True)
class LogContext:
    """Nothing is known of a field that is empty."""

    run: str = ""
    """The job's name."""
    round: str = ""
    """`round_01`, or the model that is evaluated: `teacher`, `baseline`. What all rounds have in
    common has none."""
    stage: str = ""
    """What is made: `questions`, `demonstrations`, `samples`, `pairs`, `reference`, `student`,
    `evaluation`."""


_here: ContextVar[LogContext] = ContextVar("place")
_NOWHERE = LogContext()


def current_context() -> LogContext:
    return _here.get(_NOWHERE)


@contextmanager
def bind_context(place: LogContext) -> Generator[None]:
    before = _here.set(place)
    try:
        yield
    finally:
        _here.reset(before)


@contextmanager
def in_run(run: str) -> Generator[None]:
    with bind_context(LogContext(run)):
        yield


@contextmanager
def at_artifact(name: str) -> Generator[None]:
    """`name`: the artifact's path below the run folder."""
    round, _, stage = name.rpartition("/")
    with bind_context(replace(current_context(), round=round, stage=stage)):
        yield


def start_thread(work: Callable[[], object], name: str) -> threading.Thread:
    """Start a thread, which ends with the process, at its starter's place."""
    thread = threading.Thread(target=copy_context().run, args=(work,), name=name, daemon=True)
    thread.start()
    return thread


LOG = logging.getLogger("sirt_ray")

FORMAT_VARIABLE = "SIRT_LOG"
"""Of the environment. `json`: on standard output there are JSON lines, and nothing for a person."""

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""Characters. A shorter value would be found in innocent words."""


def as_json() -> bool:
    return os.environ.get(FORMAT_VARIABLE, "").lower() == "json"


def log_event(level: int, message: str, event: str | None = None, **fields: Any) -> None:
    """`event` names what is worth keeping in a run's `events.jsonl`; `fields` are JSON values."""
    if LOG.isEnabledFor(level):
        LOG.handle(record(level, message, event, **fields))


def record(
    level: int, message: str, event: str | None = None, /, **fields: Any
) -> logging.LogRecord:
    """A record of the logger, with the place where this is called."""
    extra = {**asdict(current_context()), "event": event, "fields": fields}
    return LOG.makeRecord(LOG.name, level, "", 0, message, (), None, extra=extra)


@contextmanager
def attached_handler(handler: logging.Handler) -> Generator[None]:
    """All that this process tells while the block runs goes to `handler`, too."""
    before = LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        LOG.setLevel(before)
        LOG.removeHandler(handler)


class CallbackHandler(logging.Handler):
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


# FOLDED waiting: No wait is silent: who waits says for what after half a minute, and then less and less often.
#
# with waiting("the student engine", missing=lambda: "it needs 1 GPU; free now: nothing") as wait:
#     while not ready():
#         if wait.over: ...            # where there is a limit
#         time.sleep(0.2)
#
# with waiting("the next block") as wait:
#     for block in wait.each(blocks):
#         ...


Thing = TypeVar("Thing")

FIRST_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 600.0
_TIMES_THE_USUAL = 3.0
"""What comes again and again is late when it takes so many times what it took at most before."""


class Wait:
    """One wait, or a row of waits for the same kind of thing, each ended by `moved`.

    `missing` says what is not there yet, as far as one can know; it is asked from another thread.
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
        self._began = time.monotonic()
        self._next = self._began + first_s

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        return self._limit_s is not None and self.seconds > self._limit_s

    def moved(self, what: str | None = None) -> None:
        """Something came; what is waited for now, `what` or the same again, begins now."""
        now = time.monotonic()
        if what is None:
            self._usual = max(self._usual, now - self._began)
        else:
            self._what = what
        self._began = now
        late = min(_TIMES_THE_USUAL * self._usual, _LONGEST_PAUSE_SECONDS)
        self._next = now + max(self._first_s, late)

    def each(self, things: Iterable[Thing]) -> Iterator[Thing]:
        """The things that are waited for, one after the other."""
        for thing in things:
            self.moved()
            yield thing

    def say_if_due(self) -> float:
        """Tell what is waited for, if it is time to. Returns the seconds until that may be so."""
        now = time.monotonic()
        if now >= self._next:
            seconds = now - self._began
            self._next = now + min(seconds, _LONGEST_PAUSE_SECONDS)
            log_event(
                logging.WARNING, self.text, "waiting", what=self._what, seconds=round(seconds)
            )
        return max(0.0, self._next - time.monotonic())

    @property
    def text(self) -> str:
        since = f"waiting for {self._what} since {self.seconds:.0f} s"
        if self._missing is None:
            return since
        try:
            missing = self._missing()
        except Exception as error:  # to look may fail for the very reason that one waits
            missing = f"why is not known ({type(error).__name__})"
        return f"{since}: {missing}" if missing else since


@contextmanager
def waiting(
    what: str,
    missing: Callable[[], str] | None = None,
    limit_s: float | None = None,
    first_s: float = FIRST_SECONDS,
) -> Generator[Wait]:
    """Say what is waited for, now and then, while the block runs, whatever it is stuck in."""
    wait, done = Wait(what, missing, limit_s, first_s), threading.Event()

    def keep_saying() -> None:
        # `moved` may bring the next time to speak nearer while this sleeps.
        while not done.wait(min(wait.say_if_due(), first_s)):
            pass

    start_thread(keep_saying, f"waiting for {what}")
    try:
        yield wait
    finally:
        done.set()
