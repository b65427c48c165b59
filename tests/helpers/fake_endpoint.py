"""A fake of the boundary of `sirt_ray.endpoint`: an HTTP server with the OpenAI API. It is a real
server on this machine, with scripted responses. `send` sends a question to it through the real
engine.
"""

import asyncio
import json
import pickle
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiohttp import web

from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.on_ray.engine.api import EndpointEngine
from sirt_ray.on_ray.engine.protocol import SampleRequest, SampleResult

Json = dict[str, Any]

TEACHER = Policy("teacher", "endpoint:chat:big")
REQUEST = SampleRequest(
    prompt="What is 2 + 2?",
    prompt_ids=(),
    n=1,
    seed=7,
    temperature=0.5,
    top_p=1.0,
    max_tokens=20,
    version="teacher",
)
"""At most 14 + 64 tokens of prompt and 20 of completion."""
MOST_TOKENS = 98


def choice(text: str | None = "It is 4.", finish: str | None = "stop", index: int = 0) -> Json:
    """One choice in the shape of both APIs."""
    message = {"role": "assistant", "content": text}
    return {"index": index, "finish_reason": finish, "message": message, "text": text}


def reply(*choices: Json, usage: object = None) -> Json:
    counted = {"prompt_tokens": 10, "completion_tokens": 5 * len(choices)}
    return {"object": "completion", "choices": list(choices), "usage": usage or counted}


def as_many_as_requested(body: Json) -> Json:
    return reply(*(choice(f"{body['seed'] + i}", index=i) for i in range(body.get("n", 1))))


@dataclass
class FakeEndpoint:
    """`script`: the response to each request in turn: a reply, a status, (status, headers, body),
    raw bytes, or a function of the request's body. After its end, `answer`."""

    script: list[Any] = field(default_factory=list)
    answer: Callable[[Json], Any] = as_many_as_requested
    delay_seconds: float = 0.0
    bodies: list[Json] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    _now: int = 0

    async def _handle(self, request: web.Request) -> web.Response:
        self.times.append(asyncio.get_running_loop().time())
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            body = await request.json()
            self.bodies.append(body)
            self.paths.append(request.path)
            self.keys.append(request.headers.get("Authorization"))
            response = self.script.pop(0) if self.script else self.answer
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            return _response(response(body) if callable(response) else response)
        finally:
            self._now -= 1

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["FakeEndpoint"]:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()


def _response(response: Any) -> web.Response:
    if isinstance(response, bytes):
        return web.Response(body=response, content_type="application/json")
    if isinstance(response, int):
        response = (response, {}, {"error": {"message": f"response {response}", "code": None}})
    status, headers, body = response if isinstance(response, tuple) else (200, {}, response)
    return web.Response(
        status=status,
        headers=headers,
        body=json.dumps(body).encode(),
        content_type="application/json",
    )


def with_engine(
    folder: Path,
    endpoint: FakeEndpoint,
    use: Callable[[EndpointEngine], Awaitable[Any]],
    **settings: Any,
) -> Any:
    """Return what `use` returns for a started engine, whose pauses take milliseconds."""

    async def run() -> Any:
        async with endpoint.running():
            fields = {"url": endpoint.url, "model": "big", "api_key_env": None} | settings
            described = EndpointEngine(EndpointConfig.model_validate(fields), folder, 0.002)
            engine: EndpointEngine = pickle.loads(pickle.dumps(described))
            await engine.start(TEACHER)
            return await use(engine)

    return asyncio.run(run())


def send(
    folder: Path, endpoint: FakeEndpoint, request: SampleRequest = REQUEST, **settings: Any
) -> SampleResult:
    return with_engine(folder, endpoint, lambda engine: engine.complete(request), **settings)


def send_many(
    folder: Path, endpoint: FakeEndpoint, number: int, **settings: Any
) -> list[SampleResult]:
    async def use(engine: EndpointEngine) -> list[SampleResult]:
        requests = [replace(REQUEST, seed=seed) for seed in range(number)]
        return await asyncio.gather(*map(engine.complete, requests))

    return with_engine(folder, endpoint, use, **settings)


def refusal(result: SampleResult, reason: str = "refused_by_engine") -> str:
    """Why the endpoint has not completed the request."""
    assert result.choices == () and result.failure is not None
    assert result.failure.reason == reason
    return result.failure.message


def texts(answered: SampleResult) -> list[str | None]:
    return [choice.text for choice in answered.choices]
