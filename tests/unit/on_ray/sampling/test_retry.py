"""How calls that fail are made again. The handle is a fake of Ray Serve's: it answers, fails, or
falls over whenever one question is in a call."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from sirt_ray.errors import StageError
from sirt_ray.on_ray.engine.protocol import Answered, SampleReply, SampleRequest
from sirt_ray.on_ray.sampling.retry import QuestionRequests, RetryingClient, SampleFailure

Answer = Callable[[tuple[SampleRequest, ...]], None]


class FakeHandle:
    """Of a Serve deployment whose replica answers, unless `before` raises."""

    def __init__(self, before: Answer) -> None:
        self.sample = self
        self.calls: list[list[str]] = []
        self._before = before

    async def remote(self, requests: tuple[SampleRequest, ...]) -> tuple[SampleReply, ...]:
        self.calls.append([request.prompt for request in requests])
        await asyncio.sleep(0)
        self._before(requests)
        return tuple(SampleReply("v", Answered((), 0, 0)) for _ in requests)


def asked(name: str, count: int = 1) -> QuestionRequests:
    return QuestionRequests(
        name, tuple(SampleRequest(name, (), 1, 0, 0.0, 1.0, 1, "v") for _ in range(count))
    )


def ask(handle: FakeHandle, chunks: list[list[QuestionRequests]]) -> tuple[dict[str, object], int]:
    async def run() -> tuple[dict[str, object], int]:
        asker = RetryingClient(handle, calls_in_flight=4, timeout_s=1.0, pause_s=0.0)
        found: dict[str, object] = {}
        retries = 0
        for chunk, (outcomes, more) in zip(
            chunks, await asyncio.gather(*map(asker.ask, chunks)), strict=True
        ):
            retries += more
            found |= {one.question_id: out for one, out in zip(chunk, outcomes, strict=True)}
        return found, retries

    return asyncio.run(run())


def fails(times: int) -> Answer:
    left = Counter(failures=times)

    def before(requests: tuple[SampleRequest, ...]) -> None:
        if left["failures"] > 0:
            left["failures"] -= 1
            raise ConnectionError("the replica is gone")

    return before


def poisoned(*names: str) -> Answer:
    def before(requests: tuple[SampleRequest, ...]) -> None:
        if {request.prompt for request in requests} & set(names):
            raise ConnectionError("details\nthe engine died: out of memory\n")

    return before


def test_one_call_carries_the_whole_chunk() -> None:
    handle = FakeHandle(fails(0))
    found, retries = ask(handle, [[asked("a", 2), asked("b")]])
    assert handle.calls == [["a", "a", "b"]]
    assert [len(found[name]) for name in "ab"] == [2, 1]  # type: ignore[arg-type]
    assert retries == 0


def test_a_failed_call_is_made_again_and_counted() -> None:
    handle = FakeHandle(fails(1))
    _, retries = ask(handle, [[asked("a"), asked("b")]])
    assert handle.calls == [["a", "b"]] * 2
    assert retries == 1


def test_only_the_question_that_breaks_the_engine_is_given_up() -> None:
    handle = FakeHandle(poisoned("b"))
    found, _ = ask(handle, [[asked("a"), asked("b"), asked("c")], [asked("d")]])
    assert found.pop("b") == SampleFailure("engine_failed", "the engine died: out of memory")
    assert all(isinstance(outcome, tuple) for outcome in found.values())
    alone = [call for call in handle.calls if call == ["b"]]
    assert len(alone) == 3


def test_questions_are_given_up_one_after_the_other_while_others_are_answered() -> None:
    names = [f"q{at}" for at in range(12)]
    bad = names[::3]
    found, _ = ask(FakeHandle(poisoned(*bad)), [[asked(name)] for name in names])
    assert [name for name in names if isinstance(found[name], SampleFailure)] == bad


def test_a_broken_engine_ends_the_stage() -> None:
    with pytest.raises(StageError, match=r"3 questions in a row.*out of memory"):
        ask(FakeHandle(poisoned("a", "b", "c")), [[asked("a"), asked("b"), asked("c")]])


def test_an_error_of_ours_is_not_tried_again() -> None:
    def before(requests: tuple[SampleRequest, ...]) -> None:
        raise StageError("another version")

    handle = FakeHandle(before)
    with pytest.raises(StageError, match="another version"):
        ask(handle, [[asked("a")]])
    assert len(handle.calls) == 1
