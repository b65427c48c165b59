"""From a block of questions to its part file, with one replica in this process and no Ray."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sirt_ray.artifacts import parquet
from sirt_ray.benchmarks.registry import grade
from sirt_ray.config.job import SamplingConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import StageError
from sirt_ray.logs import LogContext
from sirt_ray.on_ray import metrics
from sirt_ray.on_ray.engine.protocol import SampleFailure, SampleRequest, SampleResult
from sirt_ray.on_ray.engine.replica import Replica, write_pointer
from sirt_ray.on_ray.sampling.prompts import TextPrompter
from sirt_ray.on_ray.sampling.questions import QuestionFile
from sirt_ray.on_ray.sampling.worker import (
    SUMMED,
    SamplingActor,
    SamplingJob,
    SamplingPlan,
    request_seed,
)
from sirt_ray.types import Question
from tests.helpers.sleeping_engine import SleepingEngine, apple_questions

PLAN = SamplingPlan({"cot": 2, "plain": 1}, SamplingConfig(temperature=1.0, max_tokens=32), seed=3)
FORBIDDEN = Question("word_problems/train/f", "word_problems", "forbidden", (), "1")


class Handle:
    """The part of a Serve handle that a sampling actor uses, on a replica of this process."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.sample = self
        self.calls: list[int] = []

    def remote(self, requests: tuple[SampleRequest, ...]) -> Awaitable[tuple[SampleResult, ...]]:
        self.calls.append(len(requests))
        return self._replica.sample(requests)


@pytest.fixture(autouse=True)
def no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.Emitter, "add", lambda *_, **__: None)


def sample(
    out: Path,
    questions: list[Question],
    version: str = "v",
    engine: SleepingEngine | None = None,
    **job: Any,
) -> dict[str, Any]:
    """The counts of the only block."""
    QuestionFile.write(out, questions)
    write_pointer(out / "pointer.json", Policy("v", "nowhere"))

    async def run() -> dict[str, Any]:
        replica = Replica.__new__(Replica)  # As Serve does, which then awaits `__init__`.
        running = engine or SleepingEngine(4, 0.0, 0.0)
        await replica.__init__("student", str(out / "pointer.json"), running, 10.0)  # type: ignore[misc, func-returns-value]
        settings: dict[str, Any] = {
            "plan": PLAN,
            "prompter": TextPrompter("chat"),
            "grade": grade,
            "out": str(out),
            "handle": Handle(replica),
            "version": version,
            "max_model_len": 4096,
            "chunk": 4,
            "calls_in_flight": 2,
            "timeout_s": 10.0,
            "context": LogContext("run"),
        }
        reference = asyncio.get_running_loop().create_future()
        reference.set_result(SamplingJob(**settings | job))
        return await SamplingActor().sample(("job", [reference]), 0, len(questions), deaths=1)

    return asyncio.run(run())


def test_a_block_becomes_one_part_in_the_order_of_its_questions(tmp_path: Path) -> None:
    questions = list(apple_questions(10))
    counts = sample(tmp_path, questions)
    rows = parquet.read(tmp_path / "part-0000000.parquet")
    assert [(row["question_id"], row["prompt_kind"], row["sample_index"]) for row in rows] == [
        (question.id, kind, index)
        for question in questions
        for kind, index in (("cot", 0), ("cot", 1), ("plain", 0))
    ]
    seeds = [request_seed(3, questions[0].id, kind) for kind in ("cot", "cot", "plain")]
    assert [row["seed"] for row in rows[:3]] == seeds
    assert counts["retries"] == 3, "each call of a block whose actor died was made once before"


def test_a_part_names_its_questions_and_counts_them(tmp_path: Path) -> None:
    """The driver of another version reads it when it continues a sampling."""
    counts = sample(tmp_path, [*apple_questions(2), FORBIDDEN])
    part = parquet.counts(tmp_path / "part-0000000.parquet")
    assert part == counts
    assert set(part) == {*SUMMED, "first", "first_id", "dropped"}
    assert (part["first"], part["questions"]) == (0, 3)
    assert part["first_id"] == "word_problems/train/0"
    assert part["completions"] == 6
    assert (part["prompt_tokens"], part["completion_tokens"]) == (4 * 100, 6 * 20)
    assert part["dropped"] == [
        {
            "id": FORBIDDEN.id,
            "reason": "refused_by_engine",
            "message": "such words are not answered",
        }
    ]


def test_a_question_is_dropped_where_any_of_its_prompts_is_too_long(tmp_path: Path) -> None:
    class Ids(TextPrompter):
        def prompt(self, question: Question, kind: Any) -> tuple[str, tuple[int, ...]]:
            long = question.id.endswith("/1") and kind == "plain"
            return question.id, (1,) * (90 if long else 10)

    counts = sample(tmp_path, list(apple_questions(3)), prompter=Ids("chat"), max_model_len=100)
    assert [(drop["id"], drop["reason"]) for drop in counts["dropped"]] == [
        ("word_problems/train/1", "prompt_too_long")
    ]
    assert counts["completions"] == 6


def test_a_version_that_the_pointer_does_not_name_ends_the_stage(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"serves the weights 'v', but 'w' was requested"):
        sample(tmp_path, list(apple_questions(1)), version="w")


def test_completions_that_are_missing_end_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def complete(self: SleepingEngine, request: SampleRequest) -> SampleResult:
        return SampleResult()

    monkeypatch.setattr(SleepingEngine, "complete", complete)
    with pytest.raises(StageError, match=r"returned 0 completions of 'v' .*; 2 were requested"):
        sample(tmp_path, list(apple_questions(1)))


def test_a_question_that_an_endpoint_cannot_answer_is_counted_paid_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its other prompt is answered, which is paid for, too."""
    lost = list(apple_questions(2))[1]

    class Endpoint(SleepingEngine):
        async def complete(self, request: SampleRequest) -> SampleResult:
            if request.question_id == lost.id and request.prompt_kind == "cot":
                failure = SampleFailure("endpoint_failed", "it failed 7 times")
                return SampleResult(failure=failure, retries=6, cost=0.5)
            return replace(await super().complete(request), cost=1.0)

    counts = sample(tmp_path, list(apple_questions(2)), engine=Endpoint(4, 0.0, 0.0))
    assert counts["dropped"] == [
        {"id": lost.id, "reason": "endpoint_failed", "message": "it failed 7 times"}
    ]
    assert counts["completions"] == 3
    assert counts["cost"] == 2 * 1.0 + 0.5 + 1.0
    assert counts["retries"] == 6 + 1, "and that of the block"
    assert f"{lost.id} was given up: it failed 7 times" in caplog.text
