"""When a request may be sent, and how long to wait before it is sent again."""

import asyncio
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_BACKOFF_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 600.0
"""However long the endpoint asks for."""


class Pace:
    """Lets requests start one after the other: at most so many a minute and evenly, none of them
    while the endpoint has asked everybody to wait."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._gap = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._open_at = 0.0
        self._door = asyncio.Lock()

    async def turn(self) -> None:
        """Wait for one's turn; turns come in the order of asking."""
        loop = asyncio.get_running_loop()
        async with self._door:
            # In a loop: while one sleeps, `hold` may put it off further.
            while (wait := self._open_at - loop.time()) > 0:
                await asyncio.sleep(wait)
            self._open_at = loop.time() + self._gap

    def hold(self, seconds: float) -> None:
        """No request starts within so many seconds."""
        self._open_at = max(self._open_at, asyncio.get_running_loop().time() + seconds)

    def held_seconds(self) -> float:
        """How long no request will start, beyond what the pace itself asks for."""
        return max(0.0, self._open_at - asyncio.get_running_loop().time() - self._gap)


def backoff_seconds(attempt: int, first: float) -> float:
    """The pause after failed attempt number `attempt` (0, 1, ...): between nothing and a bound that
    doubles, at random, so that requests which failed together do not come back together."""
    return random.uniform(0.0, min(LONGEST_BACKOFF_SECONDS, first * 2.0**attempt))


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the endpoint asks to wait: a number of (milli)seconds, or a date."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return _bounded(float(headers[name]) * scale)
        except (KeyError, ValueError):
            continue
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return _bounded((date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _bounded(seconds: float) -> float | None:
    """None for what is no length of time (not a number)."""
    return min(max(0.0, seconds), LONGEST_WAIT_SECONDS) if seconds == seconds else None
