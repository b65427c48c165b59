"""Rate limit, backoff and Retry-After: when a request may be sent, and when it is sent again."""

import asyncio
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_BACKOFF_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 600.0
"""Upper bound of the pause that an endpoint may request."""


class RateLimiter:
    """Spaces requests evenly, at most `requests_per_minute`, and starts none during a pause that
    the endpoint has requested."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next_at = 0.0
        self._lock = asyncio.Lock()

    async def acquire(self) -> None:
        """Wait until the next request may start. Callers are served in the order of their calls."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            # In a loop, because `pause` may postpone the start during the sleep.
            while (wait := self._next_at - loop.time()) > 0:
                await asyncio.sleep(wait)
            self._next_at = loop.time() + self._interval

    def pause(self, seconds: float) -> None:
        """Start no request for this many seconds."""
        self._next_at = max(self._next_at, asyncio.get_running_loop().time() + seconds)

    def paused_seconds(self) -> float:
        """Return the seconds left of a pause, beyond the usual interval."""
        return max(0.0, self._next_at - asyncio.get_running_loop().time() - self._interval)


def backoff_seconds(attempt: int, first: float) -> float:
    """Return the pause after the failed attempt number `attempt` (0, 1, ...): random, between 0 and
    a bound that doubles, so that requests which failed together are not retried together."""
    return random.uniform(0.0, min(LONGEST_BACKOFF_SECONDS, first * 2.0**attempt))


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the wait that the endpoint requests: (milli)seconds or a date in its headers. None if
    it requests none."""
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
    """Return the seconds within 0 and LONGEST_WAIT_SECONDS; None for NaN."""
    return min(max(0.0, seconds), LONGEST_WAIT_SECONDS) if seconds == seconds else None
