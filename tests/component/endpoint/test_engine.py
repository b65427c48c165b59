"""The teacher behind an endpoint: its requests, and every kind of reply."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.core import prompts
from sirt_ray.core.interfaces import Policy
from sirt_ray.endpoint.rate_limit import LONGEST_WAIT_SECONDS, retry_after_seconds
from sirt_ray.endpoint.request import api_key, prompt_of
from sirt_ray.errors import BudgetSpentError, ConfigError, StageError
from sirt_ray.on_ray.engine.api import EndpointEngine
from sirt_ray.on_ray.engine.protocol import SampleResult
from sirt_ray.types import Question
from tests.helpers.fake_endpoint import (
    REQUEST,
    TEACHER,
    FakeEndpoint,
    as_many_as_requested,
    choice,
    refusal,
    reply,
    send,
    send_many,
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

    @pytest.mark.parametrize("ended_by", ["content_filter", "tool_calls", "SAFETY"])
    def test_another_end_leaves_nothing_to_use(self, tmp_path: Path, ended_by: str) -> None:
        endpoint = FakeEndpoint([reply(choice("a", ended_by), choice("b", index=1))])
        assert texts(send(tmp_path / "one", endpoint, replace(REQUEST, n=2))) == ["", "b"]
        endpoint = FakeEndpoint([reply(choice("a", ended_by))])
        assert ended_by in refusal(send(tmp_path / "all", endpoint))
        assert ended_by in refusal(send(tmp_path / "all", endpoint))
        assert len(endpoint.bodies) == 1, "it is final, and so cached"

    @pytest.mark.parametrize(
        ("ended_by", "reason"),
        [("STOP", "stop"), ("stop_sequence", "stop"), ("MAX_TOKENS", "length")],
    )
    def test_an_end_in_another_providers_words(
        self, tmp_path: Path, ended_by: str, reason: str
    ) -> None:
        answered = send(tmp_path, FakeEndpoint([reply(choice("It is 4.", ended_by))]))
        assert texts(answered) == ["It is 4."] and answered.choices[0].finish_reason == reason

    def test_a_text_in_parts_is_joined(self, tmp_path: Path) -> None:
        parted = choice()
        parted["message"]["content"] = [
            {"type": "thinking", "thinking": [{"type": "text", "text": "2 and 2"}]},
            {"type": "text", "text": "It is"},
            " 4",
            {"type": "output_text", "text": ".", "annotations": []},
        ]
        assert texts(send(tmp_path, FakeEndpoint([reply(parted)]))) == ["It is 4."]

    @pytest.mark.parametrize(("part", "known"), [("tool_use", True), ("hologram", False)])
    def test_a_part_that_is_no_text_leaves_nothing_to_use(
        self, tmp_path: Path, part: str, known: bool
    ) -> None:
        parted = choice()
        parted["message"]["content"] = [{"type": "text", "text": "It is"}, {"type": part}]
        endpoint = FakeEndpoint([reply(parted)])
        assert part in refusal(send(tmp_path, endpoint))
        send(tmp_path, endpoint)
        assert len(endpoint.bodies) == (1 if known else 2)

    @pytest.mark.parametrize("usage", ["none", {"prompt_tokens": -1}, {"prompt_tokens": "many"}])
    def test_uncounted_tokens_are_estimated(self, tmp_path: Path, usage: object) -> None:
        answered = send(tmp_path, FakeEndpoint([reply(choice("It is four."), usage=usage)]))
        assert (answered.prompt_tokens, answered.completion_tokens) == (5, 4)
        assert '"estimated": true' in (tmp_path / "spent.jsonl").read_text()


ERROR = {"message": "the provider is busy", "code": 429}


class TestRepliesThatAreNotFinal:
    """They are paid for, as far as is known, and never used or cached."""

    @pytest.mark.parametrize(
        "lost",
        [
            reply(choice(None)) | {"error": ERROR},
            reply(choice("It is 5.")) | {"error": "overloaded"},
            reply(choice("It is 5.") | {"error": ERROR}),
            *(
                reply(choice("It is", finish))
                for finish in ("error", "abort", "insufficient_system_resource", "ERROR", None, "")
            ),
            reply(choice("It is 4."), choice("It is", "error", index=1)),
        ],
    )
    def test_it_is_requested_again(self, tmp_path: Path, lost: dict[str, Any]) -> None:
        endpoint = FakeEndpoint([lost])
        request = replace(REQUEST, n=len(lost["choices"]))
        answered = send(tmp_path, endpoint, request)
        assert texts(answered) == ["7", "8"][: request.n] and answered.retries == 1
        assert send(tmp_path, endpoint, request).cached
        assert len(endpoint.bodies) == 2

    def test_no_error_is_none(self, tmp_path: Path) -> None:
        whole = reply(choice("It is 4.") | {"error": None}) | {"error": None}
        assert texts(send(tmp_path, FakeEndpoint([whole]))) == ["It is 4."]

    def test_it_counts_towards_the_budget(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(answer=lambda body: reply(choice("It is", "error")))
        with pytest.raises(BudgetSpentError, match="45 of 130 tokens"):
            send(tmp_path, endpoint, max_tokens_total=130)
        assert len(endpoint.bodies) == 3

    def test_what_it_cost_is_counted_where_no_answer_comes(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(answer=lambda body: reply(choice("It is", "error")))
        prices = {
            "price_per_million_prompt_tokens": 1e5,
            "price_per_million_completion_tokens": 2e5,
        }
        given_up = send(tmp_path, endpoint, max_retries=2, **prices)
        assert "broken off (finish_reason 'error')" in refusal(given_up, "endpoint_failed")
        assert given_up.cost == pytest.approx(3 * 2.0) and given_up.retries == 2

    def test_an_unknown_end_is_refused_by_name_and_not_cached(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint([reply(choice("It is 4.", "dreamt"))])
        assert "finish_reason 'dreamt', which is not known" in refusal(send(tmp_path, endpoint))
        assert len(endpoint.bodies) == 1
        assert texts(send(tmp_path, endpoint)) == ["7"]

    @pytest.mark.parametrize("ended_by", ["error", "STOP", "dreamt"])
    def test_one_in_the_cache_of_an_earlier_version_is_requested_again(
        self, tmp_path: Path, ended_by: str
    ) -> None:
        endpoint = FakeEndpoint()
        send(tmp_path, endpoint)
        (entry,) = tmp_path.glob("*/*.json")
        stored = json.loads(entry.read_text())
        stored["reply"]["choices"] = [{"text": "", "stop_reason": None, "ended_by": ended_by}]
        entry.write_text(json.dumps(stored))
        assert texts(send(tmp_path, endpoint)) == ["7"]
        assert len(endpoint.bodies) == 2


def refuses(field: str, message: str) -> Callable[[dict[str, Any]], Any]:
    """Answer, unless the field is in the request."""

    def respond(body: dict[str, Any]) -> Any:
        if field in body:
            return 400, {}, {"error": {"message": message}}
        return as_many_as_requested({"seed": 7} | body)

    return respond


class TestRefusedFields:
    @pytest.mark.parametrize(
        "message", ["n must be 1", "'n' : number must be at most 1", "Bad Request"]
    )
    def test_completions_are_requested_one_at_a_time_where_n_is_refused(
        self, tmp_path: Path, message: str
    ) -> None:
        endpoint = FakeEndpoint(answer=refuses("n", message))
        request = replace(REQUEST, n=3)
        answered = send(tmp_path, endpoint, request)
        assert texts(answered) == ["7", "8", "9"] and answered.retries == 0
        assert [body.get("n") for body in endpoint.bodies] == [3, None, None, None]
        assert send(tmp_path, endpoint, request).cached
        assert len(endpoint.bodies) == 4

    @pytest.mark.parametrize(
        ("field", "message", "line"),
        [
            (
                "max_tokens",
                "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
                "{max_tokens: null, max_completion_tokens: 20}",
            ),
            (
                "max_tokens",
                "unknown field max_tokens, use max_output_tokens",
                "{max_tokens: null, max_output_tokens: 20}",
            ),
            ("temperature", "Only the default `temperature` is supported", "{temperature: null}"),
            ("seed", "body.seed: Extra inputs are not permitted", "{seed: null}"),
        ],
    )
    def test_the_line_that_leaves_a_field_out_is_named_and_does(
        self, tmp_path: Path, field: str, message: str, line: str
    ) -> None:
        endpoint = FakeEndpoint(answer=refuses(field, message))
        told = refusal(send(tmp_path, endpoint))
        assert message in told and f"`extra_body: {line}`" in told
        written = yaml.safe_load(f"extra_body: {line}")
        assert len(send(tmp_path, endpoint, **written).choices) == 1
        assert field not in endpoint.bodies[-1]

    def test_the_fields_of_the_job_stay_in_the_line(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(answer=refuses("seed", "no seed, please"))
        told = refusal(send(tmp_path, endpoint, extra_body={"top_k": 5}))
        assert "`extra_body: {top_k: 5, seed: null}`" in told

    def test_a_field_of_the_job_is_the_jobs(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(answer=refuses("top_k", "top_k: unknown"))
        told = refusal(send(tmp_path, endpoint, extra_body={"top_k": 5}))
        assert "Correct top_k in teacher.endpoint.extra_body" in told

    def test_other_refusals_get_no_advice(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint([(400, {}, {"error": {"message": "It isn't\nallowed"}})])
        assert "extra_body" not in refusal(send(tmp_path, endpoint))


class TestRequestsThatAreGivenUp:
    @staticmethod
    def answer_others(broken: Any, *seeds: int) -> FakeEndpoint:
        """An endpoint that gives a broken response to the requests with these seeds."""
        return FakeEndpoint(
            answer=lambda body: (
                broken
                if body["seed"] in seeds and "2 + 2" in body["messages"][0]["content"]
                else as_many_as_requested(body)
            )
        )

    @pytest.mark.parametrize(
        ("broken", "reason"),
        [
            (b'{"choices": [{"message": {"content": "\\ud83d"}, "finish_reason": "stop"}]}', None),
            (b'{"choices": [{"message": {"content": "\xff"}, "finish_reason": "stop"}]}', None),
            (500, None),
            (reply(choice("It is", "error")), None),
            (400, "refused_by_engine"),
            (reply(choice("It is", "dreamt")), "refused_by_engine"),
        ],
    )
    def test_others_are_answered_and_a_later_start_asks_again(
        self, tmp_path: Path, broken: Any, reason: str | None
    ) -> None:
        endpoint = self.answer_others(broken, 3)
        results = send_many(tmp_path, endpoint, 6, max_retries=2)
        refusal(results[3], reason or "endpoint_failed")
        assert [texts(one) for one in results if one.choices] == [["0"], ["1"], ["2"], ["4"], ["5"]]
        asked = len(endpoint.bodies)
        endpoint.answer = as_many_as_requested
        assert [texts(one) for one in send_many(tmp_path, endpoint, 6)] == [
            [str(seed)] for seed in range(6)
        ]
        assert len(endpoint.bodies) == asked + 1

    def test_any_number_of_them_where_the_endpoint_answers_a_simple_question(
        self, tmp_path: Path
    ) -> None:
        """Such as on a later start, when only they are left to ask."""
        hard = replace(REQUEST, prompt="poison")
        endpoint = FakeEndpoint(
            answer=lambda body: (
                500 if body["messages"][0]["content"] == "poison" else as_many_as_requested(body)
            )
        )

        async def use(engine: EndpointEngine) -> list[SampleResult]:
            return [await engine.complete(replace(hard, seed=seed)) for seed in range(7)]

        results = with_engine(tmp_path, endpoint, use, max_retries=1)
        assert all(refusal(one, "endpoint_failed") for one in results)
        assert len(endpoint.bodies) == 7 * 2 + 2
        assert (tmp_path / "spent.jsonl").read_text().count('"request": "check"') == 2

    @pytest.mark.parametrize("broken", [503, 400, b"<html>", reply(choice("It is", "dreamt"))])
    def test_an_endpoint_that_answers_nothing_ends_the_stage_soon(
        self, tmp_path: Path, broken: Any
    ) -> None:
        endpoint = FakeEndpoint(answer=lambda body: broken)

        async def use(engine: EndpointEngine) -> None:
            for seed in range(40):
                await engine.complete(replace(REQUEST, seed=seed))

        with pytest.raises(
            StageError, match=r"answered none of the last 3 requests.*What is 2 \+ 2\?.*resumes"
        ):
            with_engine(tmp_path, endpoint, use, max_retries=1)
        assert len(endpoint.bodies) <= 3 * 2 + 1


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

    def test_in_the_end_the_request_is_given_up(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint([503] * 9)
        message = refusal(send(tmp_path, endpoint, max_retries=2), "endpoint_failed")
        assert re.search(r"failed 3 times.*response 503", message)

    def test_a_late_reply_is_no_reply(self, tmp_path: Path) -> None:
        endpoint = FakeEndpoint(delay_seconds=1.0)
        given_up = send(tmp_path, endpoint, timeout_s=0.05, max_retries=1)
        assert "no reply within 0.05 s" in refusal(given_up, "endpoint_failed")
        assert len(endpoint.bodies) == 2

    def test_no_server_listens(self, tmp_path: Path) -> None:
        async def use() -> None:
            config = {"url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": None}
            engine = EndpointEngine(
                EndpointConfig.model_validate(config | {"max_retries": 1}), tmp_path, 0.001
            )
            await engine.start(TEACHER)
            for seed in range(3):
                await engine.complete(replace(REQUEST, seed=seed))

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
        for status, reason in ((400, "refused_by_engine"), (401, ""), (503, "endpoint_failed")):
            endpoint = FakeEndpoint([(status, {}, response)])
            try:
                result = send(tmp_path, endpoint, max_retries=0, api_key_env="TEST_KEY")
                message = refusal(result, reason)
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
