"""Calls to the engines, retried until each request has completions, or a reason why it never will.

requests of a chunk of questions --many calls in flight--> Replica.sample --> results
                          | a call failed twice
                          v
        each of its questions by itself, with few other suspects in flight --> results
                          | failed again
                          v
        with no other suspect in flight --> results, or the failure `engine_failed`
"""

import asyncio
import itertools
import logging
import random
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from sirt_ray.errors import SirtError, StageError
from sirt_ray.logs import log_event
from sirt_ray.on_ray.engine.protocol import SampleFailure, SampleRequest, SampleResult

_CHUNK, _SUSPECT, _LAST_SUSPECT = range(3)
"""The steps: the whole chunk, one of its questions, and the same question with no other."""
_ATTEMPTS = (2, 1, 2)
"""Of each step."""
_SUSPECTS = 16
"""Questions of failed calls that are in flight together in the second step."""
_MAX_FAILED_IN_A_ROW = 3
_REPLACEMENT_SECONDS = 1800.0
"""How long a lost engine may take to be replaced: large models load for many minutes."""


class RetryingClient:
    """The client of the engines in one sampling actor.

    Consumes the requests of a chunk of questions; a chunk is one call, because each call has its
    cost. Waits for the engines: `timeout_s` for a reply, and 30 minutes for an engine to be
    replaced. On failure: the call is retried, after a pause that grows. A chunk that fails again is
    divided, and in the end each of its questions is sampled while no other suspect is in flight:
    one that still brings the engine down is dropped with the reason, and three in a row end the
    stage, because it is then the engine that is broken. Every retried call is counted.
    """

    def __init__(
        self, handle: Any, calls_in_flight: int, timeout_s: float, pause_s: float = 1.0
    ) -> None:
        self._handle = handle
        self._slots: tuple[AbstractAsyncContextManager[Any], ...] = (
            asyncio.Semaphore(calls_in_flight),
            asyncio.Semaphore(_SUSPECTS),
            asyncio.Lock(),
        )
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._failed_in_a_row = 0

    async def sample(
        self, requests: Sequence[SampleRequest], step: int = _CHUNK
    ) -> tuple[list[SampleResult], int]:
        """Return the result of each request, in their order, and the number of retried calls.

        Raises StageError where several questions in a row fail, and any SirtError of a replica.
        """
        error: Exception | None = None
        async with self._slots[step]:
            for attempt in range(_ATTEMPTS[step]):
                try:
                    async with asyncio.timeout(_REPLACEMENT_SECONDS + self._timeout_s):
                        results = await self._handle.sample.remote(tuple(requests))
                    self._failed_in_a_row = 0
                    return list(results), attempt
                except SirtError:
                    raise
                except Exception as failure:
                    # Flaky edge: a replica may be lost or restarted at any moment, and Ray has many
                    # names for that.
                    error = failure
                    await self._pause(requests, failure, attempt)
            if step == _CHUNK:
                # The slot stays taken: no other chunk meets the engine that may be broken.
                questions = _by_question(requests)
                found = await asyncio.gather(*(self.sample(one, _SUSPECT) for one in questions))
                results = [result for of_question, _ in found for result in of_question]
                return results, _ATTEMPTS[step] + sum(retries for _, retries in found)
            if step == _LAST_SUSPECT:
                self._failed_in_a_row += 1
        if step == _LAST_SUSPECT:
            failure = self._give_up(requests, _last_line(error))
            return [SampleResult(failure=failure)] * len(requests), _ATTEMPTS[step]
        results, retries = await self.sample(requests, _LAST_SUSPECT)
        return results, _ATTEMPTS[step] + retries

    async def _pause(
        self, requests: Sequence[SampleRequest], error: Exception, attempt: int
    ) -> None:
        """Log a failed call, and wait for a time that differs from caller to caller."""
        message = f"a call of {len(_by_question(requests))} questions failed: {_last_line(error)}"
        log_event(logging.WARNING, message, "call_failed", first=requests[0].question_id)
        await asyncio.sleep(self._pause_s * 2**attempt * random.uniform(0.5, 1.5))

    def _give_up(self, requests: Sequence[SampleRequest], reason: str) -> SampleFailure:
        if self._failed_in_a_row >= _MAX_FAILED_IN_A_ROW:
            raise StageError(
                f"the engine failed on {self._failed_in_a_row} questions in a row, each sampled"
                f" {_ATTEMPTS[_LAST_SUSPECT]} times by itself. The last,"
                f" {requests[0].question_id}: {reason}. Its log is in Ray's session folder; the"
                " same command continues behind what is finished"
            )
        return SampleFailure("engine_failed", reason)


def _by_question(requests: Sequence[SampleRequest]) -> list[list[SampleRequest]]:
    """Return the requests of each question; those of one follow each other."""
    groups = itertools.groupby(requests, key=lambda request: request.question_id)
    return [list(of_question) for _, of_question in groups]


def _last_line(error: Exception | None) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
