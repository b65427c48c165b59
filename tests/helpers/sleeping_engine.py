"""A stand-in for a remote engine, which we don't own: it sleeps, and answers by the request's seed.

Faults can be set off in it. What is tested with it is Serve, Ray Data and our code between them.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sirt_ray.core.interfaces import Policy
from sirt_ray.on_ray.engine.protocol import (
    EngineDeadError,
    ReplicaLoad,
    SampledChoice,
    SampleRequest,
    SampleResult,
)
from sirt_ray.types import Question


@dataclass
class SleepingEngine:
    """Answers every request after a pause, `places` of them at a time.

    It dies of a prompt with "poison" in it, refuses one with "forbidden", and answers nothing at
    all while the file `hangs` is there when it starts.
    """

    places: int
    shortest_s: float
    longest_s: float
    hangs: str = ""
    max_model_len: int = 4096

    async def start(self, policy: Policy) -> None:
        self._free = asyncio.Semaphore(self.places)
        self._running = self._waiting = self._tokens = 0
        self._hanging = bool(self.hangs) and Path(self.hangs).exists()

    async def load(self, policy: Policy) -> None: ...

    async def check_health(self) -> None: ...

    def load_now(self) -> ReplicaLoad:
        return ReplicaLoad(self._running, self._waiting, self._tokens)

    async def complete(self, request: SampleRequest) -> SampleResult:
        if "poison" in request.prompt:
            raise EngineDeadError("it swallowed poison")
        if "forbidden" in request.prompt:
            return SampleResult.refused("such words are not answered")
        if self._hanging:
            await asyncio.Event().wait()
        self._waiting += 1
        async with self._free:
            self._waiting -= 1
            self._running += 1
            if self.longest_s:
                delays = random.Random(request.seed)
                await asyncio.sleep(delays.uniform(self.shortest_s, self.longest_s))
            self._running -= 1
        self._tokens += 20 * request.n
        texts = (
            f" Seed {request.seed + i} gave 3 more. The answer is 7." for i in range(request.n)
        )
        return SampleResult(
            tuple(SampledChoice((), "stop", text) for text in texts), 100, 20 * request.n
        )


def apple_questions(count: int) -> Iterator[Question]:
    for at in range(count):
        text = f"Tom has {at} apples and gets {at % 7} more. How many apples does Tom have now?"
        yield Question(f"word_problems/train/{at}", "word_problems", text, (), str(at + at % 7))


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.1)
