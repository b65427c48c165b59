"""Sampling: questions -> graded completions, block by block.

    missing blocks --Sampler--> SamplingActor --Serve handle--> engines
                                      |
                                      +--> out/part-<first question>.parquet

A part is written whole or not at all, and its metadata names the questions that it covers. A
killed run therefore continues with exactly the questions that no part covers, also under another
block size.

A new process spends seconds of a CPU on importing what sampling needs, as long as a small model
takes for hundreds of questions. The actors therefore start with the engines, import while those
load, and serve every stage until the engines stop.
"""

import logging
import math
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from sirt_ray.artifacts import parquet
from sirt_ray.config.resources import EngineConfig
from sirt_ray.core import repetition
from sirt_ray.core.interfaces import Counts, Policy, Progress
from sirt_ray.errors import ArtifactError, DataError, StageError
from sirt_ray.logs import current_context, log_event, waiting
from sirt_ray.on_ray.engine.options import calls_in_flight, questions_per_call
from sirt_ray.on_ray.engine.protocol import ENDPOINT_FAILED, Engine
from sirt_ray.on_ray.engine.server import ModelServer
from sirt_ray.on_ray.sampling.monitor import Usage, monitored
from sirt_ray.on_ray.sampling.prompts import Prompter
from sirt_ray.on_ray.sampling.questions import QuestionFile
from sirt_ray.on_ray.sampling.worker import SUMMED, Grade, SamplingActor, SamplingJob, SamplingPlan
from sirt_ray.storage import object_store
from sirt_ray.types import Question

_MAX_PARTS = 1000
"""The most parts of one sampling: each costs the driver a call to track and a file to read."""
_REPLICAS_PER_ACTOR = 4
"""An actor encodes, decodes and grades for so many replicas."""
_SPARE_BLOCKS = 1.5
"""Blocks in flight for each block that the calls in flight can fill."""
_MAX_DEATHS = 3
"""Deaths of the process that samples a block, after which the block is to blame."""


class Sampler:
    """One model's engines, and the actors that sample from them.

    Consumes questions. Produces graded completions in part files. Waits for: the engines, and an
    actor that died to be restarted, maybe on another node. On failure: raises the SirtError of an
    actor; finished parts stay, and the next call continues behind them.
    """

    def __init__(self, server: ModelServer) -> None:
        """Start the actors and return at once; they are ready seconds later."""
        self.server = server
        replicas = server.engine.max_replicas
        # The actors are idle while a training needs the CPUs, so they reserve none.
        actor: Any = ray.remote(SamplingActor).options(
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=1000,
            scheduling_strategy="SPREAD",
        )
        self.actors: list[Any] = [
            actor.remote() for _ in range(math.ceil(replicas / _REPLICAS_PER_ACTOR))
        ]
        self._replicas_per_actor = min(_REPLICAS_PER_ACTOR, replicas)

    @classmethod
    def deploy(
        cls,
        role: str,
        policy: Policy,
        engine: EngineConfig,
        *,
        run: str,
        pointers: Path,
        samples_per_question: int = 1,
        serving: Engine | None = None,
    ) -> "Sampler":
        """Start the engines by `ModelServer.deploy`, and the actors, which import meanwhile."""
        return cls(
            ModelServer.deploy(
                role,
                policy,
                engine,
                run=run,
                pointers=pointers,
                samples_per_question=samples_per_question,
                serving=serving,
            )
        )

    def stop(self) -> None:
        """Kill the actors and stop the engines."""
        for actor in self.actors:
            ray.kill(actor)
        self.server.stop()

    def sample(
        self,
        questions: Iterable[Question],
        plan: SamplingPlan,
        prompter: Prompter,
        grade: Grade,
        *,
        out: Path,
        block_size: int,
        name: str,
        progress: Progress,
    ) -> Counts:
        """Fill `out` with graded completions of all questions, and return the counts of what was
        sampled and dropped.

        Skips the questions that parts in `out` cover, except in parts with a question that an
        endpoint could not answer, and writes one part for each block of `block_size` others. The
        progress bar advances with every finished block. Memory does not grow with the number of
        questions: they are on disk, and every process reads those that it has in flight. Raises
        DataError without a question, ArtifactError where the parts are of other questions, and
        StageError.
        """
        out.mkdir(parents=True, exist_ok=True)
        for leftover in out.glob(".*.partial"):
            leftover.unlink()
        object_store.pull(out)
        total = QuestionFile.write(out, questions)
        if not total:
            raise DataError(f"there is no question to sample for {name}")
        discard_unanswered(out)
        covered = _covered(out)
        done = sum(count for _, count in covered)
        blocks = uncovered(total, covered, max(block_size, math.ceil(total / _MAX_PARTS)))
        if blocks:
            job = self._job(plan, prompter, grade, out)
            with (
                progress.stage(name, total, "questions") as bar,
                monitored(self.server, bar, done, out) as monitor,
                waiting(f"the next block of {name}", monitor.describe) as wait,
            ):
                for counts in wait.each(self._run(blocks, job)):
                    monitor.finished(counts["questions"])
        object_store.pull(out)  # Parts that actors on other nodes have written.
        counts = _total(out, name)
        object_store.discard(out / ".asked")
        if warning := repetition.repetition_warning(name, counts):
            log_event(logging.WARNING, warning, repetition.WARNING, artifact=name)
        return {**counts, "usage": Usage.of(out).summary(counts["completion_tokens"])}

    def _job(self, plan: SamplingPlan, prompter: Prompter, grade: Grade, out: Path) -> SamplingJob:
        server, samples = self.server, plan.samples_per_question
        return SamplingJob(
            plan=plan,
            prompter=prompter,
            grade=grade,
            out=object_store.to_uri(out.absolute()),
            handle=server.handle,
            version=server.policy.version,
            max_model_len=server.max_model_len,
            chunk=questions_per_call(server.engine, samples),
            calls_in_flight=calls_in_flight(server.engine, samples) * self._replicas_per_actor,
            timeout_s=server.engine.request_timeout_s,
            context=current_context(),
        )

    def _run(self, blocks: Sequence[range], job: SamplingJob) -> Iterator[dict[str, Any]]:
        """Have the actors sample the blocks; yield each block's counts once its part is written.

        Raises an actor's error; the blocks in flight are cancelled then.
        """
        sent = (uuid.uuid4().hex, [ray.put(job)])
        waiting = list(reversed(blocks))
        limit = _blocks_per_actor(blocks, job)
        in_flight: dict[Any, tuple[int, range]] = {}
        deaths: Counter[range] = Counter()
        try:
            while waiting or in_flight:
                for number, actor in enumerate(self.actors):
                    for _ in range(limit - sum(n == number for n, _ in in_flight.values())):
                        if waiting:
                            block = waiting.pop()
                            call = actor.sample.remote(sent, block.start, len(block), deaths[block])
                            in_flight[call] = number, block
                done, _ = ray.wait(list(in_flight))
                for reference in done:
                    number, block = in_flight.pop(reference)
                    try:
                        counts = _result(reference)
                    except RayActorError as error:
                        deaths[block] += 1
                        _on_actor_death(error, block, deaths[block])
                        in_flight[self.actors[number].ping.remote()] = number, block
                        continue
                    if counts is None:
                        waiting.append(block)
                    else:
                        yield counts
        finally:
            for reference in in_flight:
                ray.cancel(reference)


def discard_unanswered(out: Path) -> None:
    """Delete the parts with a question that an endpoint could not answer when it was asked: it is
    asked again, and the others of its part are in the cache of paid answers."""
    for part in parquet.files(out):
        if any(drop["reason"] == ENDPOINT_FAILED for drop in parquet.counts(part)["dropped"]):
            object_store.discard(part)


def uncovered(num_questions: int, covered: Sequence[tuple[int, int]], size: int) -> list[range]:
    """Return blocks of at most `size` positions that are in no (first, count) of `covered`."""
    blocks: list[range] = []
    at = 0
    for first, count in [*sorted(covered), (num_questions, 0)]:
        blocks += [range(i, min(i + size, first)) for i in range(at, first, size)]
        at = max(at, first + count)
    return blocks


def _blocks_per_actor(blocks: Sequence[range], job: SamplingJob) -> int:
    """Return enough blocks to fill an actor's calls although old blocks wait for their last
    completions. More would only be lost with the driver."""
    filled = job.calls_in_flight * job.chunk / max(map(len, blocks))
    return max(1, math.ceil(_SPARE_BLOCKS * filled))


def _result(reference: Any) -> dict[str, Any] | None:
    """Return a block's counts; None from the ping of an actor that is back."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, StageError):
            raise error.cause from None
        raise


def _on_actor_death(error: RayActorError, block: range, deaths: int) -> None:
    """Log that the sampling actor of `block` died. Raises StageError after `_MAX_DEATHS` deaths."""
    reason = str(error).strip().splitlines()[0]
    if deaths > _MAX_DEATHS:
        raise StageError(
            f"The process that samples a block ended {deaths} times while it had it: {reason}."
            " Memory may have run out: lower resources.block_size. The same command continues"
            " behind what is finished"
        ) from None
    message = (
        f"the process that samples {len(block)} questions died; they are sampled again when it is"
        f" back: {reason}"
    )
    log_event(logging.WARNING, message, "sampler_lost", first=block.start)


def _covered(out: Path) -> list[tuple[int, int]]:
    """Return (first, count) of the questions of each part in `out`. Raises ArtifactError where they
    are not the questions of this sampling."""
    questions = QuestionFile(out)
    covered: list[tuple[int, int]] = []
    for part in parquet.files(out):
        counts = parquet.counts(part)
        first, count = int(counts["first"]), int(counts["questions"])
        expected = questions.read(first, count)
        if len(expected) != count or expected[0].id != counts["first_id"]:
            raise ArtifactError(
                f"{part} was sampled from other questions than the ones to sample now. Move the"
                " folder away, or give the run another name"
            )
        covered.append((first, count))
    return covered


def _total(out: Path, name: str) -> dict[str, Any]:
    """Return the sum of the parts' counts. Where no question could be sampled, delete the parts,
    which would keep a better setting from being tried, and raise StageError."""
    parts = parquet.files(out)
    total: Counter[str] = Counter(dict.fromkeys(SUMMED, 0))
    reasons: Counter[str] = Counter()
    an_example = ""
    for part in parts:
        counts = parquet.counts(part)
        total.update({key: counts.get(key, 0) for key in SUMMED})
        for drop in counts["dropped"]:
            reasons[drop["reason"]] += 1
            an_example = an_example or f"{drop['id']}: {drop['message']}"
    if reasons.total() == total["questions"]:
        for part in parts:
            object_store.discard(part)
        raise StageError(
            f"{name}: none of the {total['questions']} questions could be sampled. The first,"
            f" {an_example}"
        )
    if not total["cost"]:
        del total["cost"]
    return {**total, "dropped": dict(reasons)}
