"""Questions -> graded completions, block by block.

    missing blocks --Samplers (actors)--> BlockSampler --Serve handle--> engines
                                               |
                                               +--> out/part-<first question>.parquet

A part is written whole or not at all and says in its metadata which questions it covers, so a
killed run continues with exactly the questions that no part covers, also under another block size.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sirt_ray.artifacts import parquet
from sirt_ray.config.resources import ResourcesConfig
from sirt_ray.core.interfaces import Counts, Progress
from sirt_ray.errors import ArtifactError, DataError, StageError
from sirt_ray.logs import current_context, waiting
from sirt_ray.on_ray.engine.options import calls_in_flight, questions_per_call
from sirt_ray.on_ray.engine.server import ModelServer
from sirt_ray.on_ray.sampling.monitor import Usage, watched
from sirt_ray.on_ray.sampling.prompts import Prompter
from sirt_ray.on_ray.sampling.questions import QuestionFile
from sirt_ray.on_ray.sampling.worker import SUMMED, BlockJob, Grade, SamplingPlan
from sirt_ray.storage import object_store
from sirt_ray.types import Question

_MOST_PARTS = 1000
"""Of one sampling: each costs the driver a task to hold and a file to look at."""


def uncovered(num_questions: int, covered: Sequence[tuple[int, int]], size: int) -> list[range]:
    """Blocks of at most `size` positions that are in no (first, count) of `covered`."""
    blocks: list[range] = []
    at = 0
    for first, count in [*sorted(covered), (num_questions, 0)]:
        blocks += [range(i, min(i + size, first)) for i in range(at, first, size)]
        at = max(at, first + count)
    return blocks


def sample(
    questions: Iterable[Question],
    plan: SamplingPlan,
    server: ModelServer,
    prompter: Prompter,
    out: Path,
    resources: ResourcesConfig,
    progress: Progress,
    name: str,
    grade: Grade,
) -> Counts:
    """Fill `out` with graded completions of all questions, and say what was made and dropped.

    Consumes the questions' blocks that no part in `out` covers. Produces one part for each.
    Waits for the engines; the bar moves with every finished block. On failure: raises StageError,
    the finished parts stay and the next call continues behind them. Memory does not grow with the
    number of questions: they lie on disk, and every process reads what it has under way.
    """
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*.partial"):
        leftover.unlink()
    object_store.pull(out)
    total = QuestionFile.write(out, questions)
    if not total:
        raise DataError(f"there is no question to sample for {name}")
    covered = _covered(out)
    done = sum(count for _, count in covered)
    blocks = uncovered(total, covered, max(resources.block_size, math.ceil(total / _MOST_PARTS)))
    if blocks:
        job = _job(plan, server, prompter, out, name, grade)
        with (
            progress.stage(name, total, "questions") as bar,
            watched(server, bar, done, out) as watch,
            waiting(f"the next block of {name}", watch.told) as wait,
        ):
            for made in wait.each(server.samplers.run(blocks, job)):
                watch.finished(made["questions"])
    object_store.pull(out)  # The actors' parts, where those are on other nodes.
    counts = _total(out, name)
    object_store.discard(out / ".asked")
    return {**counts, "usage": Usage.of(out).summary(counts["completion_tokens"])}


def _job(
    plan: SamplingPlan,
    server: ModelServer,
    prompter: Prompter,
    out: Path,
    name: str,
    grade: Grade,
) -> BlockJob:
    return BlockJob(
        handle=server.handle,
        plan=plan,
        grade=grade,
        prompter=prompter,
        out=object_store.to_uri(out.absolute()),
        name=name,
        version=server.policy.version,
        max_model_len=server.max_model_len,
        chunk=questions_per_call(server.engine, plan.samples_per_question),
        calls_in_flight=calls_in_flight(server.engine, plan.samples_per_question)
        * server.samplers.replicas_per_actor,
        timeout_s=server.engine.request_timeout_s,
        place=current_context(),
    )


def _covered(out: Path) -> list[tuple[int, int]]:
    """(first, count) of the questions that the parts in `out` hold."""
    asked = QuestionFile(out)
    covered: list[tuple[int, int]] = []
    for part in parquet.files(out):
        counts = parquet.counts(part)
        first, count = int(counts["first"]), int(counts["questions"])
        held = asked.read(first, count)
        if len(held) != count or held[0].id != counts["first_id"]:
            raise ArtifactError(
                f"{part} was sampled from other questions than the ones to sample now. Move the"
                " folder away, or give the run another name"
            )
        covered.append((first, count))
    return covered


def _total(out: Path, name: str) -> dict[str, Any]:
    """The parts' counts together. Where nothing could be sampled the parts are taken away again:
    they would keep a better setting from being tried."""
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
