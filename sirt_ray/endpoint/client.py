"""Client of one endpoint: sends a request, retries it until it is answered, and pays for it once.

request --cache?--> Answer
    --budget--> slot --rate limit--> attempt --backoff, retry--> Reply --record, cache--> Answer
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.endpoint.budget import Budget
from sirt_ray.endpoint.cache import Cache, key_of
from sirt_ray.endpoint.rate_limit import RateLimiter, backoff_seconds
from sirt_ray.endpoint.replies import Reply, UnreadableReplyError, read_reply
from sirt_ray.endpoint.request import EndpointRequest, Json, RetryableError, max_usage, request_body
from sirt_ray.endpoint.transport import Transport
from sirt_ray.errors import StageError


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, with what it took to get it."""

    reply: Reply
    cached: bool
    retries: int = 0
    cost: float = 0.0
    """Paid for this request now; 0 if the reply was cached."""


class EndpointClient:
    """An endpoint with its cache, budget and rate limit, for many concurrent requests.

    `first_pause`: upper bound in seconds of the first pause before a retry.
    """

    def __init__(
        self, config: EndpointConfig, folder: Path, key: str | None, first_pause: float = 1.0
    ) -> None:
        self._config = config
        self._first_pause = first_pause
        self._transport = Transport(config, key)
        self._cache = Cache(folder)
        self._budget = Budget(config, folder)
        self._rate_limiter = RateLimiter(config.requests_per_minute)
        self._slots = asyncio.Semaphore(config.max_in_flight)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """One for each key in flight: the second of two equal requests finds the first's reply in
        the cache."""
        self.running = 0
        """Requests that the endpoint is working on."""
        self.accepted = 0
        """Requests that the endpoint is working on or that wait for their turn."""

    @property
    def paused_seconds(self) -> float:
        """Seconds for which no request will be sent, because the endpoint has requested a pause."""
        return self._rate_limiter.paused_seconds()

    async def answer(self, request: EndpointRequest) -> Answer:
        """Return the answer to a request. Raises RefusedByEndpointError if the endpoint rejects
        this request, BudgetSpentError, or StageError if further requests would fail, too."""
        body = request_body(self._config, request)
        # The body alone does not identify the sample: `extra_body` may have removed its seed.
        identity: Json = {
            "api": self._config.api,
            "body": body,
            "seed": request.seed,
            "first": request.first,
        }
        key = key_of(identity)
        self.accepted += 1
        try:
            async with self._locks.setdefault(key, asyncio.Lock()):
                cached = await asyncio.to_thread(self._cache.get, identity)
                if cached is not None:
                    return Answer(cached, cached=True)
                async with self._budget.reserved(max_usage(body, request)):
                    answer = await self._send_with_retries(key, body, request)
                    await asyncio.to_thread(self._cache.put, identity, answer.reply)
                    return answer
        finally:
            self.accepted -= 1

    async def _send_with_retries(self, key: str, body: Json, request: EndpointRequest) -> Answer:
        cost, attempt = 0.0, 0
        while True:
            try:
                content = await self._attempt(body)
                reply = read_reply(content, self._config.api, request.n, request.prompt)
                cost += self._budget.pay(key, reply.use)
                return Answer(reply, cached=False, retries=attempt, cost=cost)
            except UnreadableReplyError as error:
                cost += self._budget.pay(key, error.usage)
                failure = RetryableError(self._transport.without_key(str(error)))
            except RetryableError as error:
                failure = error
            if attempt == self._config.max_retries:
                raise StageError(
                    f"{self._config.url} failed {attempt + 1} times on one request, the last time"
                    f" with {failure}. What is finished is kept, and the same command resumes"
                )
            if failure.retry_after_seconds is not None:
                self._rate_limiter.pause(failure.retry_after_seconds)
            await asyncio.sleep(backoff_seconds(attempt, self._first_pause))
            attempt += 1

    async def _attempt(self, body: Json) -> bytes:
        async with self._slots:
            await self._rate_limiter.acquire()
            self.running += 1
            try:
                return await self._transport.post(body)
            finally:
                self.running -= 1
