"""The log of a submitted run's driver, followed over connections that may break."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

import aiohttp
from ray.job_submission import JobStatus

from sirt_ray.errors import ResourceError
from sirt_ray.on_ray.submit.submissions import Submission

Report = Callable[[str], None]
"""Prints one line for the user."""

_POLL_SECONDS = 1.0
_REPORT_EVERY_SECONDS = 30.0
_LOST_SECONDS = 600.0
"""Time without an answer of the cluster after which `follow` gives up."""
_LAST_TRIES = 3
"""Attempts to read the rest of an ended job's log, whose node may be gone."""


class RateLimited:
    """Passes at most one message per 30 s on to `report`, with the seconds waited so far; none in
    the first 30 s."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._reported = self._started = time.monotonic()

    @property
    def waited(self) -> float:
        """Seconds since the start of the wait."""
        return time.monotonic() - self._started

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._reported >= _REPORT_EVERY_SECONDS:
            self._reported = time.monotonic()
            self._report(f"{self.waited:.0f} s: {text}")


class LogSource(Protocol):
    """The part of `Cluster` that `follow` needs."""

    address: str

    def submission(self, submission_id: str) -> Submission:
        """Return the current state of a submission."""
        ...

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        """Yield the log from its beginning, and what is written to it until the job ends."""
        ...


def follow(cluster: LogSource, submission_id: str, report: Report) -> Iterator[str]:
    """Yield what the driver writes, each part once, from the beginning until the job ends.

    Waits for a node for the driver and for its next line, and reconnects when a connection breaks;
    `report` gets a line on either every 30 s. Raises ResourceError if the cluster does not answer
    for 10 minutes, StageError if it does not know the job any more.
    """
    shown = last_tries = 0  # Characters of the log; attempts since the job has ended.
    complete = False  # Whether the last connection has shown the log to its end.
    lost_since: float | None = None
    wait = RateLimited(report)
    with asyncio.Runner() as runner:
        while True:
            try:
                submission, lost_since = cluster.submission(submission_id), None
            except ResourceError as error:
                lost_since, complete = lost_since or time.monotonic(), False
                if time.monotonic() - lost_since > _LOST_SECONDS:
                    raise
                wait(str(error))
                time.sleep(_POLL_SECONDS)
                continue
            if submission.is_over and (complete or last_tries >= _LAST_TRIES):
                return
            if submission.state == JobStatus.PENDING:
                wait(
                    f"{submission_id} waits for its files, or for a node with what"
                    " resources.driver requires"
                )
                time.sleep(_POLL_SECONDS)
                continue
            if complete:  # The connection was closed before the job ended.
                time.sleep(_POLL_SECONDS)
            last_tries += submission.is_over
            position, complete = 0, False
            lines = cluster.tail(submission_id)
            try:
                while (text := runner.run(_next(lines))) is not None:
                    new = text[max(0, shown - position) :]
                    position += len(text)
                    shown = max(shown, position)
                    if new:
                        yield new
                complete = True
            except (aiohttp.ClientError, RuntimeError, OSError) as error:
                wait(f"the connection to {cluster.address} broke, reconnecting: {error}")
                time.sleep(_POLL_SECONDS)


async def _next(lines: AsyncIterator[str]) -> str | None:
    return await anext(lines, None)
