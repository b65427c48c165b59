"""Budget, rate limit and cache of a teacher behind an endpoint."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sirt_ray.endpoint.rate_limit import RateLimiter
from sirt_ray.errors import BudgetSpentError
from sirt_ray.on_ray.engine.api import EndpointEngine
from sirt_ray.on_ray.engine.protocol import SampleResult
from tests.helpers.fake_endpoint import (
    MOST_TOKENS,
    REQUEST,
    FakeEndpoint,
    choice,
    refusal,
    reply,
    send,
    send_many,
    texts,
    with_engine,
)

PRICES = {"price_per_million_prompt_tokens": 1e5, "price_per_million_completion_tokens": 2e5}
"""A request costs 0.1 * 10 + 0.2 * 5 = 2, and at most 0.1 * 78 + 0.2 * 20 = 11.8."""


class TestCache:
    def test_a_paid_answer_is_not_requested_again(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        request = replace(REQUEST, n=2)
        first = send(tmp_path, endpoint, request)
        again = send(tmp_path, endpoint, request, requests_per_minute=5, max_tokens_total=1)
        assert again == replace(first, cached=True, cost=0.0)
        assert len(endpoint.bodies) == 1

    def test_what_was_answered_in_parts_is_found_in_parts(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(answer=lambda body: reply(choice(str(body["seed"]))))
        request = replace(REQUEST, n=3)
        send(tmp_path, endpoint, request)
        assert texts(send(tmp_path, endpoint, request)) == ["7", "8", "9"]
        assert len(endpoint.bodies) == 3

    @pytest.mark.parametrize(
        "change",
        [
            {"prompt": "What is 3 + 3?"},
            {"n": 2},
            {"seed": 8},
            {"temperature": 0.6},
            {"max_tokens": 21},
        ],
    )
    def test_another_question_is_another_entry(
        self, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        endpoint = FakeEndpoint()
        send(tmp_path, endpoint)
        assert not send(tmp_path, endpoint, replace(REQUEST, **change)).cached

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"request": {}, "reply": {}}'])
    def test_a_damaged_entry_is_requested_again(self, tmp_path: Path, damage: bytes) -> None:
        endpoint = FakeEndpoint()
        send(tmp_path, endpoint)
        (entry,) = tmp_path.glob("*/*.json")
        whole = entry.read_bytes()
        entry.write_bytes(damage)
        assert texts(send(tmp_path, endpoint)) == ["7"]
        assert entry.read_bytes() == whole

    def test_the_same_request_twice_at_once_is_paid_once(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(delay_seconds=0.02)

        async def use(engine: EndpointEngine) -> list[SampleResult]:
            return await asyncio.gather(engine.complete(REQUEST), engine.complete(REQUEST))

        first, second = with_engine(tmp_path, endpoint, use)
        assert len(endpoint.bodies) == 1
        assert not first.cached and second.cached


class TestBudget:
    def test_tokens_run_out_and_a_larger_budget_goes_on(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        with pytest.raises(BudgetSpentError) as caught:
            send_many(tmp_path, endpoint, 20, max_tokens_total=200)
        answered = len(endpoint.bodies)
        # Each takes 15 and may take 98: the eighth would start at 105, the next might overrun.
        assert answered == 7
        message = str(caught.value)
        assert "105 of 200 tokens" in message and f"{MOST_TOKENS} tokens more" in message
        assert "--set teacher.endpoint.max_tokens_total" in message
        with pytest.raises(BudgetSpentError):
            send_many(tmp_path, endpoint, 20, max_tokens_total=200)
        assert len(endpoint.bodies) == answered
        everything = send_many(tmp_path, endpoint, 20, max_tokens_total=10_000)
        assert len(endpoint.bodies) == 20
        assert sum(one.cached for one in everything) == answered

    def test_money_runs_out(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        assert send(tmp_path, endpoint, max_cost=20, **PRICES).cost == pytest.approx(2.0)
        with pytest.raises(BudgetSpentError, match=r"10 of 20 \(max_cost\)"):
            send_many(tmp_path, endpoint, 20, max_cost=20, **PRICES)
        assert len(endpoint.bodies) == 5

    def test_requests_at_the_same_time_never_overrun_it(self, tmp_path: Path) -> None:
        """The server takes as much as it may."""
        used = {"prompt_tokens": 78, "completion_tokens": 20}
        endpoint = FakeEndpoint(answer=lambda body: reply(choice(), usage=used), delay_seconds=0.01)
        with pytest.raises(BudgetSpentError):
            send_many(tmp_path, endpoint, 30, max_tokens_total=10 * MOST_TOKENS + 50)
        assert len(endpoint.bodies) == 10

    def test_a_line_cut_off_by_a_lost_machine_is_skipped(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        send(tmp_path, endpoint)
        with (tmp_path / "spent.jsonl").open("a") as file:
            file.write('{"prompt_tok')
        send(tmp_path, endpoint, replace(REQUEST, seed=8))
        with pytest.raises(BudgetSpentError, match="30 of 100 tokens"):
            send(tmp_path, endpoint, replace(REQUEST, seed=9), max_tokens_total=100)

    def test_what_is_refused_costs_nothing(self, tmp_path: Path) -> None:
        refusal(send(tmp_path, FakeEndpoint([400]), max_tokens_total=MOST_TOKENS))
        assert texts(send(tmp_path, FakeEndpoint(), max_tokens_total=MOST_TOKENS)) == ["7"]


class TestPace:
    def test_never_more_at_once_than_allowed(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(delay_seconds=0.02)
        send_many(tmp_path, endpoint, 12, max_in_flight=3)
        assert endpoint.most_at_once == 3

    def test_never_more_a_minute_than_allowed(self, tmp_path: Path) -> None:
        async def use(engine: EndpointEngine) -> float:
            started = asyncio.get_running_loop().time()
            requests = [engine.complete(replace(REQUEST, seed=seed)) for seed in range(5)]
            await asyncio.gather(*requests)
            return asyncio.get_running_loop().time() - started

        assert with_engine(tmp_path, FakeEndpoint(), use, requests_per_minute=1200) >= 4 * 0.05

    def test_starts_are_even(self) -> None:
        async def turns() -> list[float]:
            limiter, loop = RateLimiter(1200), asyncio.get_running_loop()

            async def turn() -> float:
                await limiter.acquire()
                return loop.time()

            return await asyncio.gather(*(turn() for _ in range(4)))

        times = asyncio.run(turns())
        assert all(b - a >= 0.049 for a, b in pairwise(times))

    def test_a_pause_of_the_endpoint_is_reported_and_the_usual_interval_is_not(self) -> None:
        async def held() -> tuple[float, float]:
            limiter = RateLimiter(1)
            await limiter.acquire()
            before = limiter.paused_seconds()
            limiter.pause(600.0)
            return before, limiter.paused_seconds()

        before, paused = asyncio.run(held())
        assert before == 0.0
        assert 500.0 < paused <= 540.0  # the limit has one request a minute

    def test_the_load_is_what_is_under_way(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(delay_seconds=0.05)

        async def use(engine: EndpointEngine) -> tuple[int, int]:
            requests = [engine.complete(replace(REQUEST, seed=seed)) for seed in range(5)]
            sent = asyncio.gather(*requests)
            while not endpoint.bodies:
                await asyncio.sleep(0.001)
            load = engine.load_now()
            await sent
            assert engine.load_now().running == engine.load_now().waiting == 0
            return load.running, load.waiting

        assert with_engine(tmp_path, endpoint, use, max_in_flight=2) == (2, 3)
