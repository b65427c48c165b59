"""The actors that sample blocks: started with the engines, and kept until those stop.

A fresh process spends seconds of a CPU on importing what sampling needs, as long as a small model
takes for hundreds of questions. These do so while the engines load, and serve every stage.
"""

import logging
import math
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from sirt_ray.config.resources import EngineConfig
from sirt_ray.errors import SirtError, StageError
from sirt_ray.logs import log_event
from sirt_ray.on_ray.sampling.worker import BlockJob, BlockSampler

_REPLICAS_PER_ACTOR = 4
"""An actor encodes, decodes and grades for so many."""
_SPARE_BLOCKS = 1.5
"""Blocks under way for each that the calls in flight can fill."""
_DEATHS = 3
"""Of the process that samples a block, after which the block is to blame."""


class Samplers:
    """Enough actors for the engine's replicas, each with several blocks under way."""

    def __init__(self, engine: EngineConfig) -> None:
        self._count = math.ceil(engine.max_replicas / _REPLICAS_PER_ACTOR)
        self.replicas_per_actor = min(_REPLICAS_PER_ACTOR, engine.max_replicas)
        self.actors: list[Any] = []

    def start(self) -> None:
        """Return at once; the actors are ready seconds later."""
        # No CPUs of Ray's: the actors are idle while a training needs them.
        actor: Any = ray.remote(_SamplingActor).options(
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=1000,
            scheduling_strategy="SPREAD",
        )
        self.actors = [actor.remote() for _ in range(self._count)]

    def run(self, blocks: Sequence[range], job: BlockJob) -> Iterator[dict[str, Any]]:
        """Sample the blocks; each one's counts as soon as its part is written.

        Waits for any block, and for an actor that is lost to be started again, on another node
        maybe. Raises what an actor met; the blocks under way are given up then.
        """
        sent = (uuid.uuid4().hex, [ray.put(job)])
        waiting = list(reversed(blocks))
        most = self._blocks_per_actor(blocks, job)
        at_work: dict[Any, tuple[int, range]] = {}
        lost: Counter[range] = Counter()
        try:
            while waiting or at_work:
                for number, actor in enumerate(self.actors):
                    for _ in range(most - sum(n == number for n, _ in at_work.values())):
                        if waiting:
                            block = waiting.pop()
                            call = actor.sample.remote(sent, block.start, len(block), lost[block])
                            at_work[call] = number, block
                done, _ = ray.wait(list(at_work))
                for reference in done:
                    number, block = at_work.pop(reference)
                    try:
                        made = _got(reference)
                    except RayActorError as error:
                        lost[block] += 1
                        _bear(error, block, lost[block])
                        at_work[self.actors[number].is_back.remote()] = number, block
                        continue
                    if made is None:
                        waiting.append(block)
                    else:
                        yield made
        finally:
            for reference in at_work:
                ray.cancel(reference)

    def stop(self) -> None:
        for actor in self.actors:
            ray.kill(actor)

    def _blocks_per_actor(self, blocks: Sequence[range], job: BlockJob) -> int:
        """Enough to fill an actor's calls although old blocks wait for their last answers. More
        would only be lost with the driver."""
        filled = job.calls_in_flight * job.chunk / max(map(len, blocks))
        return max(1, math.ceil(_SPARE_BLOCKS * filled))


class _SamplingActor:
    def __init__(self) -> None:
        import transformers.tokenization_utils_tokenizers  # noqa: F401  Tokenizers come with jobs.
        from ray.serve import handle  # noqa: F401  So do handles.

        self._job = ""
        self._sampler: BlockSampler | None = None

    @ray.method(max_task_retries=-1)
    async def is_back(self) -> None:
        """Answered by an actor that lives. Until then Ray asks again: while a lost node is not
        missed yet, calls of its actors fail at once."""

    async def sample(
        self, job: tuple[str, list[Any]], first: int, count: int, lost: int
    ) -> dict[str, Any]:
        """`job`: its name and where it lies; it is fetched once for all its blocks. `lost`: how
        often a process has been lost that had this block."""
        name, (reference,) = job
        if name != self._job:
            fetched = await reference
            if name != self._job:
                self._job, self._sampler = name, BlockSampler(fetched)
        assert self._sampler is not None
        try:
            return await self._sampler.sample(first, count, lost)
        except SirtError as error:
            # Of one that a replica raised already, a second journey would lose the cause.
            raise StageError(str(getattr(error, "cause", error))) from None


def _got(reference: Any) -> dict[str, Any] | None:
    """A block's counts; None from an actor that is back."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, StageError):
            raise error.cause from None
        raise


def _bear(error: RayActorError, block: range, times: int) -> None:
    """Say that the block's process is lost. Raises StageError where it is so too often."""
    reason = str(error).strip().splitlines()[0]
    if times > _DEATHS:
        raise StageError(
            f"The process that samples a block ended {times} times while it had it: {reason}."
            " Memory may have run out: lower resources.block_size. The same command continues"
            " behind what is finished"
        ) from None
    message = f"the process that samples {len(block)} questions is lost; they are asked again when"
    log_event(logging.WARNING, f"{message} it is back: {reason}", "sampler_lost", first=block.start)
