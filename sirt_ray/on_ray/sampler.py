"""Questions -> graded completions, block by block.

    missing blocks --Ray Data--> BlockSampler (actors) --Serve handle--> engines
                                      |
                                      +--> out/part-<first question>.parquet, one for each block

A part is written whole or not at all and says in its metadata which questions it covers, so a
killed run continues with exactly the questions that no part covers, also under another block size.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from sirt_ray import tables
from sirt_ray.core.interfaces import Counts, Progress
from sirt_ray.errors import ArtifactError, DataError, StageError
from sirt_ray.on_ray.block_sampler import SUMMED, BlockJob, BlockSampler, Grade, SamplingPlan
from sirt_ray.on_ray.placement import questions_in_flight
from sirt_ray.on_ray.serving import ModelServer
from sirt_ray.resources import ResourcesConfig
from sirt_ray.types import Question

SAMPLER_CPUS = 0.1
"""Logical CPUs of one sampling actor; there is one for each replica."""


def uncovered(num_questions: int, covered: Sequence[tuple[int, int]], size: int) -> list[range]:
    """Blocks of at most `size` positions that are in no (first, count) of `covered`."""
    blocks: list[range] = []
    at = 0
    for first, count in [*sorted(covered), (num_questions, 0)]:
        blocks += [range(i, min(i + size, first)) for i in range(at, first, size)]
        at = max(at, first + count)
    return blocks


def sample(
    questions: Sequence[Question],
    plan: SamplingPlan,
    server: ModelServer,
    tokenizer: Any,
    out: Path,
    resources: ResourcesConfig,
    progress: Progress,
    name: str,
    grade: Grade,
) -> Counts:
    """Fill `out` with graded completions of all questions, and say what was made and dropped.

    Consumes the questions' blocks that no part in `out` covers. Produces one part for each.
    Waits for the engines; the bar moves with every finished block. On failure: raises StageError,
    the finished parts stay and the next call continues behind them.
    """
    if not questions:
        raise DataError(f"there is no question to sample for {name}")
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*.partial"):
        leftover.unlink()
    covered = _covered(questions, out)
    blocks = uncovered(len(questions), covered, resources.block_size)
    with progress.stage(name, len(questions), "questions") as bar:
        done = sum(count for _, count in covered)
        bar.update(done)
        began, tokens = time.monotonic(), 0
        job = BlockJob(
            server.handle,
            plan,
            grade,
            tokenizer,
            str(out.absolute()),
            server.policy.version,
            server.max_model_len,
            questions_in_flight(server.engine, plan.samples_per_question),
        )
        for made in _run(questions, blocks, job, server.engine.max_replicas, resources):
            done += made["questions"]
            tokens += made["completion_tokens"]
            bar.update(done, **{"tokens/s": round(tokens / (time.monotonic() - began))})
    return _total(out, name)


def _covered(questions: Sequence[Question], out: Path) -> list[tuple[int, int]]:
    """(first, count) of the questions that the parts in `out` hold."""
    covered: list[tuple[int, int]] = []
    for part in tables.files(out):
        counts = tables.counts(part)
        first, count = int(counts["first"]), int(counts["questions"])
        held = [question.id for question in questions[first : first + count]]
        if len(held) != count or held[0] != counts["first_id"]:
            raise ArtifactError(
                f"{part} was sampled from other questions than the ones to sample now. Move the"
                " folder away, or give the run another name"
            )
        covered.append((first, count))
    return covered


def _total(out: Path, name: str) -> Counts:
    """The parts' counts together. Where nothing could be sampled the parts are taken away again:
    they would keep a better setting from being tried."""
    parts = tables.files(out)
    counts = [tables.counts(part) for part in parts]
    total: dict[str, Any] = {key: sum(part[key] for part in counts) for key in SUMMED}
    dropped = [drop for part in counts for drop in part["dropped"]]
    total["dropped"] = dict(Counter(drop["reason"] for drop in dropped))
    if len(dropped) == total["questions"]:
        for part in parts:
            part.unlink()
        raise StageError(
            f"{name}: none of the {len(dropped)} questions could be sampled. The first,"
            f" {dropped[0]['id']}: {dropped[0]['message']}"
        )
    return total


def _run(
    questions: Sequence[Question],
    blocks: Sequence[range],
    job: BlockJob,
    num_replicas: int,
    resources: ResourcesConfig,
) -> Iterator[dict[str, Any]]:
    """Sample the blocks; each one's counts as soon as its part is written."""
    if not blocks:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    context.memory_usage_poll_interval_s = None
    actors = min(len(blocks), num_replicas)
    blocks_per_actor = max(1, resources.blocks_in_flight // actors)
    results = ray.data.from_arrow([_block_table(questions, block) for block in blocks]).map_batches(
        BlockSampler,
        fn_constructor_args=(job,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=actors,
            max_tasks_in_flight_per_actor=blocks_per_actor,
            max_concurrent_calls_per_actor=blocks_per_actor,
        ),
        num_cpus=SAMPLER_CPUS,
    )
    batches: Iterable[Any] = results.iter_batches(batch_size=None, batch_format="pyarrow")
    for batch in batches:
        for line in batch.column("outcome").to_pylist():
            outcome = json.loads(line)
            if "failed" in outcome:
                raise StageError(outcome["failed"])
            yield outcome


def _block_table(questions: Sequence[Question], block: range) -> pa.Table:
    rows = [tables.question_row(questions[position]) for position in block]
    table = pa.Table.from_pylist(rows, schema=tables.QUESTION)
    return table.append_column("position", pa.array(block, pa.int64()))
