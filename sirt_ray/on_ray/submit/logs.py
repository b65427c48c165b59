"""Following what the driver of a submitted run writes, over connections that break."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import aiohttp
from ray.job_submission import JobStatus

from sirt_ray.errors import ResourceError
from sirt_ray.on_ray.submit.submissions import Submission

Print = Callable[[str], None]
Result = TypeVar("Result")

_POLL_SECONDS = 1.0
_SAY_EVERY_SECONDS = 30.0
_LOST_SECONDS = 600.0
"""Without an answer of the cluster, after which following a job gives up."""
_LAST_TRIES = 3
"""To read the rest of an ended job's log, whose node may be gone."""


class RateLimited:
    """Says something once a wait is long, and then now and then."""

    def __init__(self, say: Print) -> None:
        self._say = say
        self._said = self._began = time.monotonic()

    @property
    def waited(self) -> float:
        """Seconds."""
        return time.monotonic() - self._began

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._said >= _SAY_EVERY_SECONDS:
            self._said = time.monotonic()
            self._say(f"{self.waited:.0f} s: {text}")


class Source(Protocol):
    """What is asked of the cluster."""

    address: str

    def submission(self, submission_id: str) -> Submission: ...

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        """The log from its beginning, and what is written to it until the job is over."""
        ...


def follow(cluster: Source, submission_id: str, say: Print) -> Iterator[str]:
    """What the driver writes, each part once, from the beginning until the job is over.

    Waits for: a place for the driver, and its next line. A connection that breaks is made again;
    `say` hears of either every 30 s. Raises ResourceError where the cluster does not answer for 10
    minutes, StageError where it does not know the job any more.
    """
    shown = tries = 0
    lost_since: float | None = None
    said = RateLimited(say)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        while True:
            at, whole = 0, False
            lines = _patient(cluster, submission_id, said)
            try:
                while (text := _waited_for(loop, _next(lines))) is not None:
                    new = text[max(0, shown - at) :]
                    at += len(text)
                    shown = max(shown, at)
                    if new:
                        yield new
                whole = True
            except (aiohttp.ClientError, RuntimeError, OSError) as error:
                said(f"the connection to {cluster.address} broke, and is made again: {error}")
            finally:
                _waited_for(loop, lines.aclose())
            try:
                over, lost_since = cluster.submission(submission_id).is_over, None
            except ResourceError as error:
                now = time.monotonic()
                lost_since = lost_since or now
                if now - lost_since > _LOST_SECONDS:
                    raise
                said(str(error))
                over = False
            tries += over
            if over and (whole or tries >= _LAST_TRIES):
                return
            time.sleep(_POLL_SECONDS)


def _waited_for(loop: asyncio.AbstractEventLoop, what: Coroutine[Any, Any, Result]) -> Result:
    """The result; where the wait is interrupted, nothing of it goes on."""
    task = loop.create_task(what)
    try:
        return loop.run_until_complete(task)
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)


async def _patient(cluster: Source, submission_id: str, said: RateLimited) -> AsyncGenerator[str]:
    """The log; while nothing comes, `said` hears if the job still waits for a place."""
    lines = cluster.tail(submission_id)
    task: asyncio.Task[str | None] | None = None
    try:
        while True:
            task = task or asyncio.ensure_future(_next(lines))
            if not (await asyncio.wait([task], timeout=_SAY_EVERY_SECONDS))[0]:
                with suppress(ResourceError):
                    if cluster.submission(submission_id).state == JobStatus.PENDING:
                        said(
                            f"{submission_id} waits for its files, or for a node with what"
                            " resources.driver asks for"
                        )
                continue
            text, task = task.result(), None
            if text is None:
                return
            yield text
    finally:
        if task is not None:
            task.cancel()


async def _next(lines: AsyncIterator[str]) -> str | None:
    return await anext(lines, None)
