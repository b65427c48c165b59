"""How calls that fail are retried. The handle is a fake of Ray Serve's: it completes, fails, or
crashes whenever one question is in a call."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from sirt_ray.errors import StageError
from sirt_ray.on_ray.engine.protocol import SampleFailure, SampleRequest, SampleResult
from sirt_ray.on_ray.sampling.retry import RetryingClient

BeforeReply = Callable[[tuple[SampleRequest, ...]], None]
Requests = list[SampleRequest]


class FakeHandle:
    """The handle of a Serve deployment whose replica replies, unless `before` raises."""

    def __init__(self, before: BeforeReply) -> None:
        self.sample = self
        self.calls: list[list[str]] = []
        self._before = before

    async def remote(self, requests: tuple[SampleRequest, ...]) -> tuple[SampleResult, ...]:
        self.calls.append([request.prompt for request in requests])
        await asyncio.sleep(0)
        self._before(requests)
        return tuple(SampleResult() for _ in requests)


def requests(name: str, count: int = 1) -> Requests:
    return [SampleRequest(name, (), 1, 0, 0.0, 1.0, 1, "v", question_id=name) for _ in range(count)]


def sample(handle: FakeHandle, chunks: list[Requests]) -> tuple[dict[str, list[SampleResult]], int]:
    """The results of each question, and the number of retried calls."""

    async def run() -> tuple[dict[str, list[SampleResult]], int]:
        client = RetryingClient(handle, calls_in_flight=4, timeout_s=1.0, pause_s=0.0)
        found: dict[str, list[SampleResult]] = {}
        total = 0
        for chunk, (results, retries) in zip(
            chunks, await asyncio.gather(*map(client.sample, chunks)), strict=True
        ):
            total += retries
            for request, result in zip(chunk, results, strict=True):
                found.setdefault(request.question_id, []).append(result)
        return found, total

    return asyncio.run(run())


def fails(times: int) -> BeforeReply:
    left = Counter(failures=times)

    def before(chunk: tuple[SampleRequest, ...]) -> None:
        if left["failures"] > 0:
            left["failures"] -= 1
            raise ConnectionError("the replica is gone")

    return before


def poisoned(*names: str) -> BeforeReply:
    def before(chunk: tuple[SampleRequest, ...]) -> None:
        if {request.prompt for request in chunk} & set(names):
            raise ConnectionError("details\nthe engine died: out of memory\n")

    return before


def test_one_call_carries_the_whole_chunk() -> None:
    handle = FakeHandle(fails(0))
    found, retries = sample(handle, [[*requests("a", 2), *requests("b")]])
    assert handle.calls == [["a", "a", "b"]]
    assert [len(found[name]) for name in "ab"] == [2, 1]
    assert retries == 0


def test_a_failed_call_is_made_again_and_counted() -> None:
    handle = FakeHandle(fails(1))
    _, retries = sample(handle, [[*requests("a"), *requests("b")]])
    assert handle.calls == [["a", "b"]] * 2
    assert retries == 1


def test_only_the_question_that_breaks_the_engine_is_given_up() -> None:
    handle = FakeHandle(poisoned("b"))
    found, retries = sample(
        handle, [[*requests("a"), *requests("b", 2), *requests("c")], requests("d")]
    )
    failure = SampleFailure("engine_failed", "the engine died: out of memory")
    assert found.pop("b") == [SampleResult(failure=failure)] * 2
    assert found == {name: [SampleResult()] for name in "acd"}
    alone = [call for call in handle.calls if call == ["b", "b"]]
    assert len(alone) == 3
    assert retries == 2 + 3


def test_questions_are_given_up_one_after_the_other_while_others_are_answered() -> None:
    names = [f"q{at}" for at in range(12)]
    bad = names[::3]
    found, _ = sample(FakeHandle(poisoned(*bad)), [requests(name) for name in names])
    assert [name for name in names if found[name][0].failure] == bad


def test_a_broken_engine_ends_the_stage() -> None:
    chunk = [*requests("a"), *requests("b"), *requests("c")]
    with pytest.raises(StageError, match=r"3 questions in a row.*out of memory"):
        sample(FakeHandle(poisoned("a", "b", "c")), [chunk])


def test_an_error_of_ours_is_not_tried_again() -> None:
    def before(chunk: tuple[SampleRequest, ...]) -> None:
        raise StageError("another version")

    handle = FakeHandle(before)
    with pytest.raises(StageError, match="another version"):
        sample(handle, [requests("a")])
    assert len(handle.calls) == 1
