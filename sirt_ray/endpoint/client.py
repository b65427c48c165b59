"""Client of one endpoint: sends a request, retries it until it is answered, and pays for it once.

request --cache?--> Answer
    --budget--> slot --rate limit--> attempt --record--> Reply --cache--> Answer
        | no reply, or one that must not be used
        --backoff, retry--> attempt ... --> UnansweredError
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary

from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.endpoint.budget import Budget
from sirt_ray.endpoint.cache import Cache, key_of
from sirt_ray.endpoint.rate_limit import RateLimiter, backoff_seconds
from sirt_ray.endpoint.replies import Reply, UnusableReplyError, read_reply
from sirt_ray.endpoint.request import (
    EndpointRequest,
    Json,
    RefusedByEndpointError,
    RetryableError,
    UnansweredError,
    max_usage,
    request_body,
)
from sirt_ray.endpoint.transport import Transport
from sirt_ray.errors import StageError
from sirt_ray.logs import log_event

_MAX_UNANSWERED_IN_A_ROW = 3
"""Requests that are given up with no answer to another between them, after which the endpoint is
checked."""
_SIMPLE_QUESTION = "What is 2 + 2?"
"""The request of that check. It is paid for, and not cached."""


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
        self._refuses_n = False
        """Whether the endpoint has refused a request for several completions and answered the same
        one for one."""
        self._unanswered_in_a_row = 0
        self._checking = asyncio.Lock()
        self.running = 0
        """Requests that the endpoint is working on."""
        self.accepted = 0
        """Requests that the endpoint is working on or that wait for their turn."""

    @property
    def paused_seconds(self) -> float:
        """Seconds for which no request will be sent, because the endpoint has requested a pause."""
        return self._rate_limiter.paused_seconds()

    async def answer(self, request: EndpointRequest) -> Answer:
        """Return the answer to a request. Raises UnansweredError if this request was given up,
        BudgetSpentError, or StageError if further requests would fail, too."""
        body = request_body(self._config, request)
        # The body alone does not identify the sample: `extra_body` may have removed its seed.
        identity: Json = {
            "api": self._config.api,
            "body": body,
            "seed": request.seed,
            "first": request.first,
        }
        self.accepted += 1
        try:
            async with self._locks.setdefault(key_of(identity), asyncio.Lock()):
                cached = await asyncio.to_thread(self._cache.get, identity)
                if cached is not None:
                    return Answer(cached, cached=True)
                try:
                    answer = await self._send_with_retries(body, request, identity)
                except UnansweredError as error:
                    await self._check_endpoint(request, error)
                    raise
                self._unanswered_in_a_row = 0
                return answer
        finally:
            self.accepted -= 1

    async def _send_with_retries(
        self, body: Json, request: EndpointRequest, identity: Json
    ) -> Answer:
        """Return the answer; raises UnansweredError."""
        cost, attempt = 0.0, 0
        while True:
            refused, retry_after_seconds = False, None
            try:
                reply, paid = await self._attempt_with_or_without_n(body, request, identity)
                return Answer(reply, cached=False, retries=attempt, cost=cost + paid)
            except RefusedByEndpointError as error:
                failure, refused = str(error), True
            except UnusableReplyError as error:
                failure, refused = self._transport.without_key(str(error)), not error.retryable
                cost += self._budget.cost(error.usage)
            except RetryableError as error:
                failure, retry_after_seconds = str(error), error.retry_after_seconds
            if not refused and attempt == self._config.max_retries:
                failure = (
                    f"{self._config.url} failed {attempt + 1} times on this request, the last time"
                    f" with {failure}"
                )
            if refused or attempt == self._config.max_retries:
                raise UnansweredError(failure, refused=refused, retries=attempt, cost=cost)
            if retry_after_seconds is not None:
                self._rate_limiter.pause(retry_after_seconds)
            await asyncio.sleep(backoff_seconds(attempt, self._first_pause))
            attempt += 1

    async def _attempt_with_or_without_n(
        self, body: Json, request: EndpointRequest, identity: Json
    ) -> tuple[Reply, float]:
        """Send a request once. If it is refused, and asks for several completions, send it for one:
        some endpoints know no `n`, or only 1."""
        if request.n == 1 or "n" in self._config.extra_body:
            return await self._attempt(body, request, identity)
        if not self._refuses_n:
            with suppress(RefusedByEndpointError):
                return await self._attempt(body, request, identity)
        for_one = {name: value for name, value in body.items() if name != "n"}
        found = await self._attempt(for_one, request, identity)
        if not self._refuses_n:
            self._refuses_n = True
            message = (
                f"{self._config.url} refuses requests for several completions (n): each completion"
                " is requested by itself, and its prompt is paid for each time"
            )
            log_event(logging.WARNING, message, "endpoint_refuses_n")
        return found

    async def _attempt(
        self, body: Json, request: EndpointRequest, identity: Json | None
    ) -> tuple[Reply, float]:
        """Send a request once, pay for its reply and cache it, if the request has an identity;
        return the reply and its cost. Raises RetryableError, RefusedByEndpointError, and
        UnusableReplyError, whose usage is paid."""
        key = "check" if identity is None else key_of(identity)
        async with self._budget.reserved(max_usage(body, request)):
            async with self._slots:
                await self._rate_limiter.acquire()
                self.running += 1
                try:
                    content = await self._transport.post(body)
                finally:
                    self.running -= 1
            try:
                reply = read_reply(content, self._config.api, request.n, request.prompt)
            except UnusableReplyError as error:
                self._budget.pay(key, error.usage)
                raise
            cost = self._budget.pay(key, reply.use)
            if identity is not None:
                # Before the end of the reservation: a spent budget ends the process, and what is
                # paid for must be in the cache by then.
                await asyncio.to_thread(self._cache.put, identity, reply)
            return reply, cost

    async def _check_endpoint(self, request: EndpointRequest, error: UnansweredError) -> None:
        """Tell requests that the endpoint cannot answer from an endpoint that answers none: after
        several in a row without an answer, send it a simple one. Raises StageError if that fails,
        too."""
        self._unanswered_in_a_row += 1
        if self._unanswered_in_a_row < _MAX_UNANSWERED_IN_A_ROW:
            return
        async with self._checking:
            if self._unanswered_in_a_row < _MAX_UNANSWERED_IN_A_ROW:
                return
            simple = replace(request, prompt=_SIMPLE_QUESTION, n=1, first=0)
            body = request_body(self._config, simple)
            try:
                await self._attempt(body, simple, None)
            except (RefusedByEndpointError, RetryableError, UnusableReplyError):
                raise StageError(
                    f"{self._config.url} has answered none of the last"
                    f" {self._unanswered_in_a_row} requests, and not"
                    f" '{_SIMPLE_QUESTION}' either. The last: {str(error).rstrip('.')}. What is"
                    " finished is kept, and the same command resumes"
                ) from None
            self._unanswered_in_a_row = 0
