"""No wait is silent: who waits says for what after half a minute, and then less and less often.

with waiting("the student engine", missing=lambda: "it needs 1 GPU; free now: nothing") as wait:
    while not ready():
        if wait.over: ...            # where there is a limit
        time.sleep(0.2)

with waiting("the next block") as wait:
    for block in wait.each(blocks):
        ...
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sirt_ray.logs import tell
from sirt_ray.place import thread_here

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
            tell(logging.WARNING, self.text, "waiting", what=self._what, seconds=round(seconds))
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

    thread_here(keep_saying, f"waiting for {what}")
    try:
        yield wait
    finally:
        done.set()
