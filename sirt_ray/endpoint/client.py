"""One request to an endpoint, asked until it is answered, and paid for once.

Ask --cache?--> Answer
    --budget--> place --pace--> attempt --pause, again--> Reply --record, cache--> Answer
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.endpoint.budget import Budget
from sirt_ray.endpoint.cache import Cache, key_of
from sirt_ray.endpoint.rate_limit import Pace, backoff_seconds
from sirt_ray.endpoint.replies import Reply, UnreadableReplyError, read_reply
from sirt_ray.endpoint.request import EndpointRequest, Json, MayPassError, longest_use, request_body
from sirt_ray.endpoint.transport import Transport
from sirt_ray.errors import StageError


@dataclass(frozen=True, slots=True)
class Answer:
    reply: Reply
    cached: bool
    retries: int = 0
    cost: float = 0.0
    """What was paid now."""


class EndpointClient:
    """An endpoint with its cache, its budget and its pace, for many requests at the same time.

    `first_pause`: seconds, the bound of the first pause before a request is sent again.
    """

    def __init__(
        self, config: EndpointConfig, folder: Path, key: str | None, first_pause: float = 1.0
    ) -> None:
        self._config = config
        self._first_pause = first_pause
        self._transport = Transport(config, key)
        self._cache = Cache(folder)
        self._budget = Budget(config, folder)
        self._pace = Pace(config.requests_per_minute)
        self._places = asyncio.Semaphore(config.max_in_flight)
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.running = 0
        """Requests that the endpoint works on."""
        self.accepted = 0
        """Those, and the ones that wait for their turn."""

    @property
    def held_seconds(self) -> float:
        """How long it will send nothing, because the endpoint has asked for a pause."""
        return self._pace.held_seconds()

    async def answer(self, ask: EndpointRequest) -> Answer:
        """Raises RefusedByEndpointError, BudgetSpentError, or StageError where going on is of no
        use."""
        body = request_body(self._config, ask)
        # Seed and number stand beside the body, which `extra_body` may have rid of both: a second
        # sample is no repetition of the first.
        request: Json = {
            "api": self._config.api,
            "body": body,
            "seed": ask.seed,
            "first": ask.first,
        }
        key = key_of(request)
        self.accepted += 1
        try:
            async with self._asking.setdefault(key, asyncio.Lock()):
                cached = await asyncio.to_thread(self._cache.get, request)
                if cached is not None:
                    return Answer(cached, cached=True)
                async with self._budget.reserved(longest_use(body, ask)):
                    answer = await self._ask_until_answered(key, body, ask)
                    await asyncio.to_thread(self._cache.put, request, answer.reply)
                    return answer
        finally:
            self.accepted -= 1

    async def _ask_until_answered(self, key: str, body: Json, ask: EndpointRequest) -> Answer:
        cost, attempt = 0.0, 0
        while True:
            try:
                content = await self._attempt(body)
                reply = read_reply(content, self._config.api, ask.n, ask.prompt)
                cost += self._budget.pay(key, reply.use)
                return Answer(reply, cached=False, retries=attempt, cost=cost)
            except UnreadableReplyError as error:
                cost += self._budget.pay(key, error.use)
                failed = MayPassError(self._transport.without_key(str(error)))
            except MayPassError as error:
                failed = error
            if attempt == self._config.max_retries:
                raise StageError(
                    f"{self._config.url} failed {attempt + 1} times on one request, the last time"
                    f" with {failed}. What is finished is kept, and the same command continues"
                )
            if failed.wait_seconds is not None:
                self._pace.hold(failed.wait_seconds)
            await asyncio.sleep(backoff_seconds(attempt, self._first_pause))
            attempt += 1

    async def _attempt(self, body: Json) -> bytes:
        async with self._places:
            await self._pace.turn()
            self.running += 1
            try:
                return await self._transport.post(body)
            finally:
                self.running -= 1
