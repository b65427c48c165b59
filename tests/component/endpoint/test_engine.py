"""The teacher behind an endpoint: its requests, and every kind of reply."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.core import prompts
from sirt_ray.core.interfaces import Policy
from sirt_ray.endpoint.rate_limit import LONGEST_WAIT_SECONDS, retry_after_seconds
from sirt_ray.endpoint.request import api_key, prompt_of
from sirt_ray.errors import ConfigError, StageError
from sirt_ray.on_ray.engine.api import EndpointEngine
from sirt_ray.types import Question
from tests.helpers.fake_endpoint import (
    REQUEST,
    TEACHER,
    FakeEndpoint,
    choice,
    refusal,
    reply,
    send,
    texts,
    with_engine,
)

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


class TestRequests:
    def test_a_question_is_a_users_message(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint([reply(choice("It is 4."))])
        answered = send(tmp_path, endpoint, api_key_env="TEST_KEY")
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
        answered = send(tmp_path, endpoint, api="completions")
        assert endpoint.paths == ["/v1/completions"]
        assert endpoint.bodies[0]["prompt"] == "What is 2 + 2?"
        assert texts(answered) == [" 4"]
        assert answered.choices[0].finish_reason == "length"

    def test_no_key_is_sent_to_an_open_server(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        send(tmp_path, endpoint)
        assert endpoint.keys == [None]

    def test_extra_body_adds_replaces_and_takes_out(self, tmp_path: Path) -> None:
        extra = {"top_k": 20, "max_tokens": None, "max_completion_tokens": 9, "temperature": 1.0}
        endpoint = FakeEndpoint()
        send(tmp_path, endpoint, extra_body=extra)
        body = endpoint.bodies[0]
        assert "max_tokens" not in body
        assert (body["top_k"], body["max_completion_tokens"], body["temperature"]) == (20, 9, 1.0)

    def test_only_a_model_without_a_template_gets_the_whole_prompt(self) -> None:
        question = Question("a", "gsm8k", "How many?", (), "1")
        assert prompt_of("chat", question, "cot") == prompts.chat_message(question, "cot")
        assert prompt_of("completions", question, "plain") == prompts.render(question, "plain")

    def test_seeds_fit_into_31_bits(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        send(tmp_path, endpoint, replace(REQUEST, seed=2**62 - 1))
        assert 0 <= endpoint.bodies[0]["seed"] < 2**31


class TestSeveralChoices:
    def test_all_at_once(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint()
        answered = send(tmp_path, endpoint, replace(REQUEST, n=3))
        assert texts(answered) == ["7", "8", "9"]
        assert [body["n"] for body in endpoint.bodies] == [3]

    def test_the_rest_is_requested_with_other_seeds(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(answer=lambda body: reply(choice(str(body["seed"]))))
        answered = send(tmp_path, endpoint, replace(REQUEST, n=3))
        assert texts(answered) == ["7", "8", "9"]
        assert [body.get("n") for body in endpoint.bodies] == [3, 2, None]
        assert (answered.prompt_tokens, answered.completion_tokens) == (10, 15)

    def test_a_provider_without_n_and_seed_gets_one_request_for_each(self, tmp_path: Path) -> None:
        answers = iter("abc")
        endpoint = FakeEndpoint(answer=lambda body: reply(choice(next(answers))))
        answered = send(
            tmp_path, endpoint, replace(REQUEST, n=3), extra_body={"n": None, "seed": None}
        )
        assert texts(answered) == ["a", "b", "c"]

    def test_too_many_are_cut_and_the_indices_give_the_order(self, tmp_path: Path) -> None:
        mixed = reply(choice("third", index=2), choice("first", index=0), choice("second", index=1))
        answered = send(tmp_path, FakeEndpoint([mixed]), replace(REQUEST, n=2))
        assert texts(answered) == ["first", "second"]

    def test_senseless_indices_are_ignored(self, tmp_path: Path) -> None:
        mixed = reply(choice("a", index=5), choice("b", index=5))
        assert texts(send(tmp_path, FakeEndpoint([mixed]), replace(REQUEST, n=2))) == ["a", "b"]


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
    def test_an_invalid_reply_is_retried(self, tmp_path: Path, garbage: bytes) -> None:
        answered = send(tmp_path, FakeEndpoint([garbage, reply(choice("4"))]))
        assert texts(answered) == ["4"] and answered.retries == 1

    def test_a_reply_without_end_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sirt_ray.endpoint.replies.LARGEST_BODY_BYTES", 1000)
        answered = send(tmp_path, FakeEndpoint([reply(choice("4" * 1000)), reply(choice("4"))]))
        assert texts(answered) == ["4"]

    def test_no_text_is_an_empty_answer(self, tmp_path: Path) -> None:
        """A reasoning model that spent all its tokens on thoughts."""
        thinking = choice(None, "length")
        thinking["message"]["reasoning_content"] = "Let me see: 4."
        answered = send(tmp_path, FakeEndpoint([reply(thinking)]))
        assert texts(answered) == [""] and answered.choices[0].finish_reason == "length"

    @pytest.mark.parametrize("ended_by", ["content_filter", "tool_calls", None])
    def test_another_end_leaves_nothing_to_use(self, tmp_path: Path, ended_by: str | None) -> None:
        endpoint = FakeEndpoint([reply(choice("a", ended_by), choice("b", index=1))])
        assert texts(send(tmp_path / "one", endpoint, replace(REQUEST, n=2))) == ["", "b"]
        endpoint = FakeEndpoint([reply(choice("a", ended_by))])
        assert (ended_by or "no finish_reason") in refusal(send(tmp_path / "all", endpoint))

    @pytest.mark.parametrize("usage", ["none", {"prompt_tokens": -1}, {"prompt_tokens": "many"}])
    def test_uncounted_tokens_are_estimated(self, tmp_path: Path, usage: object) -> None:
        answered = send(tmp_path, FakeEndpoint([reply(choice("It is four."), usage=usage)]))
        assert (answered.prompt_tokens, answered.completion_tokens) == (5, 4)
        assert '"estimated": true' in (tmp_path / "spent.jsonl").read_text()


class TestFailures:
    @pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
    def test_what_may_pass_is_tried_again(self, tmp_path: Path, status: int) -> None:
        endpoint = FakeEndpoint([status, status])
        answered = send(tmp_path, endpoint)
        assert texts(answered) == ["7"]
        assert answered.retries == 2 and len(endpoint.bodies) == 3

    def test_all_requests_wait_as_long_as_the_endpoint_requests(self, tmp_path: Path) -> None:
        response = (429, {"retry-after-ms": "250"}, {"error": {"message": "slow down"}})
        endpoint = FakeEndpoint([response])

        async def use(engine: EndpointEngine) -> None:
            first = asyncio.create_task(engine.complete(REQUEST))
            while not endpoint.times:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            await asyncio.gather(first, engine.complete(replace(REQUEST, seed=8)))

        with_engine(tmp_path, endpoint, use)
        assert len(endpoint.times) == 3
        assert all(time - endpoint.times[0] >= 0.25 for time in endpoint.times[1:])

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"retry-after": "3"}, 3.0),
            ({"retry-after": "0.5", "retry-after-ms": "200"}, 0.2),
            ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
            ({"retry-after": "Fri, 21 Oct 2195 07:28:00 GMT"}, LONGEST_WAIT_SECONDS),
            ({"retry-after": "-1"}, 0.0),
            ({"retry-after": "nan"}, None),
            ({"retry-after": "soon"}, None),
            ({}, None),
        ],
    )
    def test_how_long_that_is(self, headers: dict[str, str], seconds: float | None) -> None:
        assert retry_after_seconds(headers) == seconds

    def test_in_the_end_the_stage_ends(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint([503] * 9)
        with pytest.raises(StageError, match=r"failed 3 times.*response 503"):
            send(tmp_path, endpoint, max_retries=2)

    def test_a_late_reply_is_no_reply(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(delay_seconds=1.0)
        with pytest.raises(StageError, match=r"no reply within 0\.05 s"):
            send(tmp_path, endpoint, timeout_s=0.05, max_retries=1)
        assert len(endpoint.bodies) == 2

    def test_no_server_listens(self, tmp_path: Path) -> None:
        async def use() -> None:
            config = {"url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": None}
            engine = EndpointEngine(
                EndpointConfig.model_validate(config | {"max_retries": 1}), tmp_path, 0.001
            )
            await engine.start(TEACHER)
            await engine.complete(REQUEST)

        with pytest.raises(StageError, match="no connection"):
            asyncio.run(use())

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_a_refused_request_is_lost_and_no_other(self, tmp_path: Path, status: int) -> None:
        endpoint = FakeEndpoint([status])
        message = refusal(send(tmp_path, endpoint))
        assert re.search(f"HTTP {status}: .*response {status}", message)
        assert texts(send(tmp_path, endpoint)) == ["7"]

    @pytest.mark.parametrize(
        ("status", "words"),
        [(401, "the key in TEST_KEY"), (403, "permissions"), (404, "model"), (402, "Fix that")],
    )
    def test_a_refusal_to_work_ends_the_stage(
        self, tmp_path: Path, status: int, words: str
    ) -> None:
        endpoint = FakeEndpoint([status])
        with pytest.raises(StageError, match=f"HTTP {status}.*{words}"):
            send(tmp_path, endpoint, api_key_env="TEST_KEY")
        assert len(endpoint.bodies) == 1

    def test_no_credit_is_not_waited_for(self, tmp_path: Path) -> None:
        body = {"error": {"message": "You have no credit", "code": "insufficient_quota"}}
        endpoint = FakeEndpoint([(429, {}, body)])
        with pytest.raises(StageError, match="no credit"):
            send(tmp_path, endpoint)
        assert len(endpoint.bodies) == 1

    def test_no_message_and_no_file_has_the_key_in_it(self, tmp_path: Path) -> None:
        response = {"error": {"message": f"Incorrect key: {KEY}"}}
        for status in (400, 401, 503):
            endpoint = FakeEndpoint([(status, {}, response)])
            try:
                message = refusal(send(tmp_path, endpoint, max_retries=0, api_key_env="TEST_KEY"))
            except StageError as error:
                message = str(error)
            assert KEY not in message and "<key>" in message
        send(tmp_path, FakeEndpoint(), api_key_env="TEST_KEY")
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
