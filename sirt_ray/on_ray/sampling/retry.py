"""Asking the engines about questions until each has an answer, or a reason why it never will.

questions' requests --chunks, many in flight--> Replica.sample --> replies
                          | a call failed twice
                          v
                 its questions in small company --> replies
                          | failed again
                          v
                     each question alone --> replies, or dropped as `engine_failed`
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sirt_ray.errors import SirtError, StageError
from sirt_ray.logs import log_event
from sirt_ray.on_ray.engine.protocol import SampleReply, SampleRequest

_ATTEMPTS_TOGETHER = 2
_ATTEMPTS_ALONE = 2
_SUSPECTS = 16
"""Questions of failed calls that are asked side by side, before each is asked alone."""
_MOST_FAILED_IN_A_ROW = 3
_REPLACEMENT_SECONDS = 1800.0
"""How long a lost engine may take to be replaced: large models load for many minutes."""


@dataclass(frozen=True, slots=True)
class QuestionRequests:
    """Everything that one question asks of the engine, in one go."""

    question_id: str
    requests: tuple[SampleRequest, ...]


@dataclass(frozen=True, slots=True)
class SampleFailure:
    """Why a question has no answer, as a name to count by and in words."""

    reason: str
    message: str


SampleResult = tuple[SampleReply, ...] | SampleFailure
"""The replies to a question's requests, in their order."""


class RetryingClient:
    """The way from one sampling actor to the engines.

    Consumes chunks of questions; a chunk travels in one call, because each call has its cost.
    Waits for the engines: `timeout_s` for an answer, and 30 minutes for an engine to be replaced.
    On failure: the call is made again, after a pause that grows. A chunk that fails again is taken
    apart, and in the end each of its questions is asked while no other suspect is: one that still
    brings the engine down is given up and said, and three in a row end the stage, because it is
    then the engine that is broken. Every call that had to be made again is in `retries`.
    """

    def __init__(
        self, handle: Any, calls_in_flight: int, timeout_s: float, pause_s: float = 1.0
    ) -> None:
        self._handle = handle
        self._free = asyncio.Semaphore(calls_in_flight)
        self._few_suspects = asyncio.Semaphore(_SUSPECTS)
        self._one_suspect = asyncio.Lock()
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._failed_in_a_row = 0

    async def ask(self, chunk: Sequence[QuestionRequests]) -> tuple[list[SampleResult], int]:
        """One outcome for each question, and the number of calls that were made again."""
        async with self._free:
            together, retries = await self._attempts(chunk, _ATTEMPTS_TOGETHER)
            if not isinstance(together, Exception):
                return together, retries
            apart = await asyncio.gather(*map(self._apart, chunk))
            return [outcome for outcome, _ in apart], retries + sum(more for _, more in apart)

    async def _apart(self, asked: QuestionRequests) -> tuple[SampleResult, int]:
        """One question of a chunk that failed: in small company, then alone."""
        async with self._few_suspects:
            outcomes, in_company = await self._attempts([asked], 1)
        if not isinstance(outcomes, Exception):
            return outcomes[0], in_company
        async with self._one_suspect:
            outcomes, alone = await self._attempts([asked], _ATTEMPTS_ALONE)
            if not isinstance(outcomes, Exception):
                return outcomes[0], in_company + alone
            self._failed_in_a_row += 1
        reason = _last_line(outcomes)
        if self._failed_in_a_row >= _MOST_FAILED_IN_A_ROW:
            raise StageError(
                f"the engine failed on {self._failed_in_a_row} questions in a row, each asked"
                f" {_ATTEMPTS_ALONE} times alone. The last, {asked.question_id}: {reason}. Its log"
                " is in Ray's session folder; the same command continues behind what is finished"
            )
        return SampleFailure("engine_failed", reason), in_company + alone

    async def _attempts(
        self, chunk: Sequence[QuestionRequests], most: int
    ) -> tuple[list[SampleResult] | Exception, int]:
        """The outcomes, or the last exception after `most` failed calls; how many failed."""
        last: Exception = StageError("no attempt was made")
        for attempt in range(most):
            try:
                outcomes = await self._call(chunk)
                self._failed_in_a_row = 0
                return outcomes, attempt
            except SirtError:
                raise
            except Exception as error:
                # Flaky edge: a replica may be lost or restarted at any moment, and Ray has many
                # names for that. The pause differs from caller to caller.
                last = error
                message = f"a call of {len(chunk)} questions failed: {_last_line(error)}"
                log_event(logging.WARNING, message, "call_failed", first=chunk[0].question_id)
                await asyncio.sleep(self._pause_s * 2**attempt * random.uniform(0.5, 1.5))
        return last, most

    async def _call(self, chunk: Sequence[QuestionRequests]) -> list[SampleResult]:
        requests = tuple(request for asked in chunk for request in asked.requests)
        async with asyncio.timeout(_REPLACEMENT_SECONDS + self._timeout_s):
            replies = iter(await self._handle.sample.remote(requests))
        outcomes: list[SampleResult] = []
        for asked in chunk:
            of_question = tuple(next(replies) for _ in asked.requests)
            refused = next((r.refused for r in of_question if r.refused is not None), None)
            outcomes.append(
                of_question if refused is None else SampleFailure("refused_by_engine", refused)
            )
        return outcomes


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
