"""The teacher behind an endpoint, against a scripted server on this machine: see `fake_endpoint`,
which stands in for the one boundary here that is not ours."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint, choice, reply

from sirt_ray.core.interfaces import Policy
from sirt_ray.endpoint.pace import Pace
from sirt_ray.endpoint.request import api_key
from sirt_ray.errors import BudgetSpentError, ConfigError, StageError
from sirt_ray.on_ray.endpoint_engine import EndpointEngine
from sirt_ray.on_ray.requests import Answered, RefusedError, SampleRequest
from sirt_ray.teachers import EndpointConfig

KEY = "sk-very-secret"
TEACHER = Policy("teacher", "endpoint:chat:big")
ASKED = SampleRequest(
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
PRICES = {"price_per_million_prompt_tokens": 1e5, "price_per_million_completion_tokens": 2e5}
"""A request costs 0.1 * 10 + 0.2 * 5 = 2, and at most 0.1 * 78 + 0.2 * 20 = 11.8."""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def with_engine(
    folder: Path,
    endpoint: FakeEndpoint,
    use: Callable[[EndpointEngine], Awaitable[Any]],
    **settings: Any,
) -> Any:
    """What `use` returns, given a started engine whose pauses are of milliseconds."""

    async def run() -> Any:
        async with endpoint.running():
            given = {"url": endpoint.url, "model": "big", "api_key_env": "TEST_KEY"} | settings
            described = EndpointEngine(EndpointConfig.model_validate(given), folder, 0.002)
            engine: EndpointEngine = pickle.loads(pickle.dumps(described))
            await engine.start(TEACHER)
            return await use(engine)

    return asyncio.run(run())


def ask(
    folder: Path, endpoint: FakeEndpoint, request: SampleRequest = ASKED, **settings: Any
) -> Answered:
    return with_engine(folder, endpoint, lambda engine: engine.complete(request), **settings)


def ask_many(folder: Path, endpoint: FakeEndpoint, number: int, **settings: Any) -> list[Answered]:
    async def use(engine: EndpointEngine) -> list[Answered]:
        requests = [replace(ASKED, seed=seed) for seed in range(number)]
        return await asyncio.gather(*map(engine.complete, requests))

    return with_engine(folder, endpoint, use, **settings)


def texts(answered: Answered) -> list[str | None]:
    return [choice.text for choice in answered.choices]


class TestRequests:
    def test_a_question_is_a_users_message(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint([reply(choice("It is 4."))])
        answered = ask(tmp_path, endpoint)
        assert endpoint.paths == ["/v1/chat/completions"]
        assert endpoint.keys == [f"Bearer {KEY}"]
        assert endpoint.bodies == [
            {
                "model": "big",
                "messages": [{"role": "user", "content": "What is 2 + 2?"}],
                "max_tokens": 20,
                "temperature": 0.5,
                "top_p": 1.0,
                "seed": 7,
            }
        ]
        assert texts(answered) == ["It is 4."]
        assert answered.choices[0].finish_reason == "stop"
        assert answered.choices[0].completion_ids == ()
        assert (answered.prompt_tokens, answered.completion_tokens) == (10, 5)
        assert not answered.cached and answered.retries == 0

    def test_or_a_prompt_to_continue(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint([reply(choice(" 4", "length"))])
        answered = ask(tmp_path, endpoint, api="completions")
        assert endpoint.paths == ["/v1/completions"]
        assert endpoint.bodies[0]["prompt"] == "What is 2 + 2?"
        assert texts(answered) == [" 4"]
        assert answered.choices[0].finish_reason == "length"

    def test_no_key_is_sent_to_an_open_server(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        ask(tmp_path, endpoint, api_key_env=None)
        assert endpoint.keys == [None]

    def test_extra_body_adds_replaces_and_takes_out(self, tmp_path: Path) -> None:
        extra = {"top_k": 20, "max_tokens": None, "max_completion_tokens": 9, "temperature": 1.0}
        endpoint = FakeEndpoint()
        ask(tmp_path, endpoint, extra_body=extra)
        body = endpoint.bodies[0]
        assert "max_tokens" not in body
        assert (body["top_k"], body["max_completion_tokens"], body["temperature"]) == (20, 9, 1.0)

    def test_seeds_fit_into_31_bits(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        ask(tmp_path, endpoint, replace(ASKED, seed=2**62 - 1))
        assert 0 <= endpoint.bodies[0]["seed"] < 2**31


class TestSeveralChoices:
    def test_all_at_once(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        answered = ask(tmp_path, endpoint, replace(ASKED, n=3))
        assert texts(answered) == ["7", "8", "9"]
        assert [body["n"] for body in endpoint.bodies] == [3]

    def test_the_rest_is_asked_for_under_its_own_seeds(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(answer=lambda body: reply(choice(str(body["seed"]))))
        answered = ask(tmp_path, endpoint, replace(ASKED, n=3))
        assert texts(answered) == ["7", "8", "9"]
        assert [body.get("n") for body in endpoint.bodies] == [3, 2, None]
        assert (answered.prompt_tokens, answered.completion_tokens) == (10, 15)

    def test_a_provider_without_n_and_seed_is_asked_each_time(self, tmp_path: Path) -> None:
        said = iter("abc")
        endpoint = FakeEndpoint(answer=lambda body: reply(choice(next(said))))
        answered = ask(
            tmp_path, endpoint, replace(ASKED, n=3), extra_body={"n": None, "seed": None}
        )
        assert texts(answered) == ["a", "b", "c"]

    def test_too_many_are_cut_and_the_indices_give_the_order(self, tmp_path: Path) -> None:
        mixed = reply(choice("third", index=2), choice("first", index=0), choice("second", index=1))
        answered = ask(tmp_path, FakeEndpoint([mixed]), replace(ASKED, n=2))
        assert texts(answered) == ["first", "second"]

    def test_senseless_indices_are_ignored(self, tmp_path: Path) -> None:
        mixed = reply(choice("a", index=5), choice("b", index=5))
        assert texts(ask(tmp_path, FakeEndpoint([mixed]), replace(ASKED, n=2))) == ["a", "b"]


class TestReplies:
    @pytest.mark.parametrize(
        "garbage",
        [
            b"<html>busy</html>",
            b"",
            b"[]",
            b'{"choices": []}',
            b'{"choices": [{"message": {"content": 4}}]}',
            b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}',
            b'{"error": {"message": "overloaded", "code": 503}}',
        ],
    )
    def test_what_is_no_reply_is_asked_again(self, tmp_path: Path, garbage: bytes) -> None:
        answered = ask(tmp_path, FakeEndpoint([garbage, reply(choice("4"))]))
        assert texts(answered) == ["4"] and answered.retries == 1

    def test_a_reply_without_end_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sirt_ray.endpoint.replies.LARGEST_BODY_BYTES", 1000)
        answered = ask(tmp_path, FakeEndpoint([reply(choice("4" * 1000)), reply(choice("4"))]))
        assert texts(answered) == ["4"]

    def test_no_text_is_an_empty_answer(self, tmp_path: Path) -> None:
        """A reasoning model that spent all its tokens on thoughts."""
        thinking = choice(None, "length")
        thinking["message"]["reasoning_content"] = "Let me see: 4."
        answered = ask(tmp_path, FakeEndpoint([reply(thinking)]))
        assert texts(answered) == [""] and answered.choices[0].finish_reason == "length"

    @pytest.mark.parametrize("ended_by", ["content_filter", "tool_calls", None])
    def test_another_end_leaves_nothing_to_use(self, tmp_path: Path, ended_by: str | None) -> None:
        endpoint = FakeEndpoint([reply(choice("a", ended_by), choice("b", index=1))])
        assert texts(ask(tmp_path / "one", endpoint, replace(ASKED, n=2))) == ["", "b"]
        endpoint = FakeEndpoint([reply(choice("a", ended_by))])
        with pytest.raises(RefusedError, match=ended_by or "no finish_reason"):
            ask(tmp_path / "all", endpoint)

    @pytest.mark.parametrize("usage", ["none", {"prompt_tokens": -1}, {"prompt_tokens": "many"}])
    def test_uncounted_tokens_are_estimated(self, tmp_path: Path, usage: object) -> None:
        answered = ask(tmp_path, FakeEndpoint([reply(choice("It is four."), usage=usage)]))
        assert (answered.prompt_tokens, answered.completion_tokens) == (5, 4)
        assert '"estimated": true' in (tmp_path / "spent.jsonl").read_text()


class TestFailures:
    @pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
    def test_what_may_pass_is_tried_again(self, tmp_path: Path, status: int) -> None:
        endpoint = FakeEndpoint([status, status])
        answered = ask(tmp_path, endpoint)
        assert texts(answered) == ["7"]
        assert answered.retries == 2 and len(endpoint.bodies) == 3

    @pytest.mark.parametrize(
        ("headers", "seconds"), [({"Retry-After": "1"}, 0.9), ({"retry-after-ms": "250"}, 0.25)]
    )
    def test_everybody_waits_as_long_as_the_endpoint_asks(
        self, tmp_path: Path, headers: dict[str, str], seconds: float
    ) -> None:
        endpoint = FakeEndpoint([(429, headers, {"error": {"message": "slow down"}})])

        async def use(engine: EndpointEngine) -> None:
            first = asyncio.create_task(engine.complete(ASKED))
            while not endpoint.times:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            await asyncio.gather(first, engine.complete(replace(ASKED, seed=8)))

        with_engine(tmp_path, endpoint, use)
        assert len(endpoint.times) == 3
        assert all(time - endpoint.times[0] >= seconds for time in endpoint.times[1:])

    def test_in_the_end_the_stage_ends(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint([503] * 9)
        with pytest.raises(StageError, match=r"failed 3 times.*said 503"):
            ask(tmp_path, endpoint, max_retries=2)

    def test_a_late_reply_is_no_reply(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(delay_seconds=1.0)
        with pytest.raises(StageError, match=r"no reply within 0\.05 s"):
            ask(tmp_path, endpoint, timeout_s=0.05, max_retries=1)
        assert len(endpoint.bodies) == 2

    def test_nobody_listens(self, tmp_path: Path) -> None:
        async def use() -> None:
            config = {"url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": None}
            engine = EndpointEngine(
                EndpointConfig.model_validate(config | {"max_retries": 1}), tmp_path, 0.001
            )
            await engine.start(TEACHER)
            await engine.complete(ASKED)

        with pytest.raises(StageError, match="no connection"):
            asyncio.run(use())

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_a_refused_request_is_lost_alone(self, tmp_path: Path, status: int) -> None:
        endpoint = FakeEndpoint([status])
        with pytest.raises(RefusedError, match=f"HTTP {status}: .*said {status}"):
            ask(tmp_path, endpoint)
        assert texts(ask(tmp_path, endpoint)) == ["7"]

    @pytest.mark.parametrize(
        ("status", "words"),
        [(401, "the key in TEST_KEY"), (403, "may use"), (404, "model"), (402, "Mend")],
    )
    def test_a_refusal_to_work_ends_the_stage(
        self, tmp_path: Path, status: int, words: str
    ) -> None:
        endpoint = FakeEndpoint([status])
        with pytest.raises(StageError, match=f"HTTP {status}.*{words}"):
            ask(tmp_path, endpoint)
        assert len(endpoint.bodies) == 1

    def test_no_credit_is_not_waited_for(self, tmp_path: Path) -> None:
        body = {"error": {"message": "You have no credit", "code": "insufficient_quota"}}
        endpoint = FakeEndpoint([(429, {}, body)])
        with pytest.raises(StageError, match="no credit"):
            ask(tmp_path, endpoint)
        assert len(endpoint.bodies) == 1

    def test_no_message_and_no_file_has_the_key_in_it(self, tmp_path: Path) -> None:
        told = {"error": {"message": f"Incorrect key: {KEY}"}}
        for status in (400, 401, 503):
            endpoint = FakeEndpoint([(status, {}, told)])
            with pytest.raises((StageError, RefusedError)) as caught:
                ask(tmp_path, endpoint, max_retries=0)
            assert KEY not in str(caught.value) and "<key>" in str(caught.value)
        ask(tmp_path, FakeEndpoint())
        assert all(KEY not in path.read_text() for path in tmp_path.rglob("*") if path.is_file())

    def test_a_missing_key_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TEST_KEY")
        config = EndpointConfig(url="http://127.0.0.1/v1", model="m", api_key_env="TEST_KEY")
        with pytest.raises(ConfigError, match=r"TEST_KEY is not set.*api_key_env: null"):
            api_key(config)

    def test_other_weights_cannot_be_loaded(self, tmp_path: Path) -> None:
        with pytest.raises(StageError, match="only a teacher"):
            with_engine(
                tmp_path, FakeEndpoint(), lambda engine: engine.load(Policy("round_00", "w"))
            )


class TestCache:
    def test_a_paid_answer_is_not_asked_for_again(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        request = replace(ASKED, n=2)
        first = ask(tmp_path, endpoint, request)
        again = ask(tmp_path, endpoint, request, requests_per_minute=5, max_tokens_total=1)
        assert again == replace(first, cached=True, cost=0.0)
        assert len(endpoint.bodies) == 1

    def test_what_was_answered_in_parts_is_found_in_parts(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(answer=lambda body: reply(choice(str(body["seed"]))))
        request = replace(ASKED, n=3)
        ask(tmp_path, endpoint, request)
        assert texts(ask(tmp_path, endpoint, request)) == ["7", "8", "9"]
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
        ask(tmp_path, endpoint)
        assert not ask(tmp_path, endpoint, replace(ASKED, **change)).cached

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"request": {}, "reply": {}}'])
    def test_a_damaged_entry_is_asked_for_again(self, tmp_path: Path, damage: bytes) -> None:
        endpoint = FakeEndpoint()
        ask(tmp_path, endpoint)
        (entry,) = tmp_path.glob("*/*.json")
        whole = entry.read_bytes()
        entry.write_bytes(damage)
        assert texts(ask(tmp_path, endpoint)) == ["7"]
        assert entry.read_bytes() == whole

    def test_the_same_request_twice_at_once_is_paid_once(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(delay_seconds=0.02)

        async def use(engine: EndpointEngine) -> list[Answered]:
            return await asyncio.gather(engine.complete(ASKED), engine.complete(ASKED))

        first, second = with_engine(tmp_path, endpoint, use)
        assert len(endpoint.bodies) == 1
        assert not first.cached and second.cached


class TestBudget:
    def test_tokens_run_out_and_a_larger_budget_goes_on(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        with pytest.raises(BudgetSpentError) as caught:
            ask_many(tmp_path, endpoint, 20, max_tokens_total=200)
        answered = len(endpoint.bodies)
        # Each takes 15 and may take 98: the eighth would start at 105, the next might overrun.
        assert answered == 7
        message = str(caught.value)
        assert "105 of 200 tokens" in message and f"{MOST_TOKENS} tokens more" in message
        assert "--set teacher.endpoint.max_tokens_total" in message
        with pytest.raises(BudgetSpentError):
            ask_many(tmp_path, endpoint, 20, max_tokens_total=200)
        assert len(endpoint.bodies) == answered
        everything = ask_many(tmp_path, endpoint, 20, max_tokens_total=10_000)
        assert len(endpoint.bodies) == 20
        assert sum(one.cached for one in everything) == answered

    def test_money_runs_out(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        assert ask(tmp_path, endpoint, max_cost=20, **PRICES).cost == pytest.approx(2.0)
        with pytest.raises(BudgetSpentError, match=r"10 of 20 \(max_cost\)"):
            ask_many(tmp_path, endpoint, 20, max_cost=20, **PRICES)
        assert len(endpoint.bodies) == 5

    def test_requests_at_the_same_time_never_overrun_it(self, tmp_path: Path) -> None:
        """The server takes as much as it may."""
        used = {"prompt_tokens": 78, "completion_tokens": 20}
        endpoint = FakeEndpoint(answer=lambda body: reply(choice(), usage=used), delay_seconds=0.01)
        with pytest.raises(BudgetSpentError):
            ask_many(tmp_path, endpoint, 30, max_tokens_total=10 * MOST_TOKENS + 50)
        assert len(endpoint.bodies) == 10

    def test_a_line_cut_off_by_a_lost_machine_is_skipped(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        ask(tmp_path, endpoint)
        with (tmp_path / "spent.jsonl").open("a") as file:
            file.write('{"prompt_tok')
        ask(tmp_path, endpoint, replace(ASKED, seed=8))
        with pytest.raises(BudgetSpentError, match="30 of 100 tokens"):
            ask(tmp_path, endpoint, replace(ASKED, seed=9), max_tokens_total=100)

    def test_what_is_refused_costs_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(RefusedError):
            ask(tmp_path, FakeEndpoint([400]), max_tokens_total=MOST_TOKENS)
        assert texts(ask(tmp_path, FakeEndpoint(), max_tokens_total=MOST_TOKENS)) == ["7"]


class TestPace:
    def test_never_more_at_once_than_allowed(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(delay_seconds=0.02)
        ask_many(tmp_path, endpoint, 12, max_in_flight=3)
        assert endpoint.most_at_once == 3

    def test_never_more_a_minute_than_allowed(self, tmp_path: Path) -> None:
        async def use(engine: EndpointEngine) -> float:
            began = asyncio.get_running_loop().time()
            requests = [engine.complete(replace(ASKED, seed=seed)) for seed in range(5)]
            await asyncio.gather(*requests)
            return asyncio.get_running_loop().time() - began

        assert with_engine(tmp_path, FakeEndpoint(), use, requests_per_minute=1200) >= 4 * 0.05

    def test_starts_are_even(self) -> None:
        async def turns() -> list[float]:
            pace, loop = Pace(1200), asyncio.get_running_loop()

            async def turn() -> float:
                await pace.turn()
                return loop.time()

            return await asyncio.gather(*(turn() for _ in range(4)))

        times = asyncio.run(turns())
        assert all(b - a >= 0.049 for a, b in pairwise(times))

    def test_the_load_is_what_is_under_way(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(delay_seconds=0.05)

        async def use(engine: EndpointEngine) -> tuple[int, int]:
            requests = [engine.complete(replace(ASKED, seed=seed)) for seed in range(5)]
            asked = asyncio.gather(*requests)
            while not endpoint.bodies:
                await asyncio.sleep(0.001)
            load = engine.load_now()
            await asked
            assert engine.load_now().running == engine.load_now().waiting == 0
            return load.running, load.waiting

        assert with_engine(tmp_path, endpoint, use, max_in_flight=2) == (2, 3)
