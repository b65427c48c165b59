"""Sampling one block of questions: what Ray Data's actors run.

question --encode--> token ids --engine--> token ids --decode, grade--> Graded --> one part file
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sirt_ray import tables
from sirt_ray.config import SamplingConfig
from sirt_ray.core.encoding import encode_prompt
from sirt_ray.errors import SirtError, StageError
from sirt_ray.on_ray.replica import SampleReply, SampleRequest
from sirt_ray.types import Completion, Graded, PromptKind, Question, StopReason, Verdict

Grade = Callable[[str, Question], tuple[Verdict, str | None]]
"""(completion's text, its question) -> (verdict, the final answer found in it)."""

SUMMED = (
    "questions",
    "completions",
    "right",
    "wrong",
    "unparseable",
    "truncated",
    "retries",
    "prompt_tokens",
    "completion_tokens",
)
"""The counts of a part that add up over parts."""

_ATTEMPTS = 4
_FIRST_BACKOFF_SECONDS = 1.0
_DEADLINE_SECONDS = 1800.0
"""For one question with all its attempts; a lost engine is replaced well within it."""
_CONTEXT_TOKENS = 4


@dataclass(frozen=True)
class SamplingPlan:
    """What is asked of the model about every question.

    Example::

        SamplingPlan((("cot", 8), ("plain", 1)), SamplingConfig(temperature=0.7), seed=0)
    """

    requests: tuple[tuple[PromptKind, int], ...]
    """(prompt kind, completions): one request of so many completions each."""
    sampling: SamplingConfig
    seed: int
    cot_only: frozenset[str] = frozenset()
    """Ids of questions that are asked with the trigger only."""

    def requests_about(self, question: Question) -> tuple[tuple[PromptKind, int], ...]:
        only = question.id in self.cot_only
        return tuple((kind, n) for kind, n in self.requests if kind == "cot" or not only)

    @property
    def samples_per_question(self) -> int:
        return sum(n for _, n in self.requests)


@dataclass(frozen=True)
class BlockJob:
    """What a sampling actor has to know; the same for all blocks."""

    handle: Any
    plan: SamplingPlan
    grade: Grade
    tokenizer: Any
    """Loaded by the driver: to unpickle it takes a second, to find and load it five."""
    out: str
    version: str
    max_model_len: int
    in_flight: int
    """Questions that one actor has under way; it is as many as one replica takes."""


class _Refused(Exception):
    """The engine will never answer this question; the message is the reason's name."""


def request_seed(seed: int, question_id: str, kind: PromptKind) -> int:
    """The seed of one request: the same whenever and beside whatever it is sampled. Completion
    number i of the request is drawn with this seed plus i."""
    digest = hashlib.blake2b(f"{seed}/{question_id}/{kind}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def stop_reason(finish_reason: str) -> StopReason:
    if finish_reason == "stop":
        return "stop"
    if finish_reason == "length":
        return "length"
    raise StageError(
        f"the engine ended a completion for the reason '{finish_reason}', which is neither the"
        " model's own end ('stop') nor the token limit ('length')"
    )


def completion_texts(
    tokenizer: Any, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]
) -> list[str]:
    """The completions of one prompt as text, without special tokens, leading spaces kept.

    They are decoded behind the prompt's last tokens, because a tokenizer of the SentencePiece kind
    drops the space in front of whatever it is given first.
    """
    context = list(prompt_ids[-_CONTEXT_TOKENS:])
    before = tokenizer.decode(context, skip_special_tokens=True)
    texts: list[str] = []
    for ids in completions:
        whole = tokenizer.decode([*context, *ids], skip_special_tokens=True)
        alone = whole.startswith(before)
        texts.append(
            whole[len(before) :] if alone else tokenizer.decode(ids, skip_special_tokens=True)
        )
    return texts


class BlockSampler:
    """Samples one block of questions at a time, several blocks at once (Ray Data runs it).

    Consumes blocks of question rows with their position. Produces the block's part file, then one
    row with its counts. Waits for: the engines, at most 30 minutes for one question. On failure: an
    error that passes (a replica was lost) is tried again; any other ends the stage.
    """

    def __init__(self, job: BlockJob) -> None:
        self._job = job
        self._free = asyncio.Semaphore(job.in_flight)

    async def __call__(self, block: pa.Table) -> pa.Table:
        try:
            outcome = await self._block(block.to_pylist())
        except SirtError as error:
            # Ray would bury it in its own exceptions, and drop their causes on the way.
            outcome = {"failed": str(getattr(error, "cause", error))}
        return pa.table({"outcome": [json.dumps(outcome)]})

    async def _block(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Sample the questions, write the part, and return its counts."""
        outcomes = await asyncio.gather(*(self._question(tables.to_question(row)) for row in rows))
        made: Counter[str] = Counter(dict.fromkeys(SUMMED, 0))
        graded: list[Graded] = []
        dropped: list[dict[str, str]] = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, _Refused):
                reason, message = outcome.args
                dropped.append({"id": row["id"], "reason": reason, "message": message})
                continue
            completions, used = outcome
            graded += completions
            made.update(used)
        for answer in graded:
            done = answer.completion
            made.update([answer.verdict, "completions"])
            made["truncated"] += done.stop_reason == "length"
            made["completion_tokens"] += len(done.completion_ids)
        made["questions"] = len(rows)
        first, first_id = rows[0]["position"], rows[0]["id"]
        counts = {**made, "first": first, "first_id": first_id, "dropped": dropped}
        part = Path(self._job.out) / f"part-{first:06d}.parquet"
        await asyncio.to_thread(
            tables.write, part, map(tables.graded_row, graded), tables.GRADED, counts
        )
        return counts

    async def _question(self, question: Question) -> tuple[list[Graded], dict[str, int]] | _Refused:
        """The graded completions of all requests, and what they took; one call to the engine."""
        job = self._job
        requests = job.plan.requests_about(question)
        try:
            asked = [self._request(question, kind, n) for kind, n in requests]
        except _Refused as refused:
            return refused
        async with self._free:
            replies, retries = await self._send(tuple(request for _, request in asked), question.id)
        graded: list[Graded] = []
        for (kind, _), (prompt, request), reply in zip(requests, asked, replies, strict=True):
            if reply.refused is not None:
                return _Refused("refused_by_engine", reply.refused)
            if reply.version != job.version or len(reply.choices) != request.n:
                raise StageError(
                    f"the engine answered question {question.id} with {len(reply.choices)}"
                    f" completions of '{reply.version}'; {request.n} of '{job.version}' were asked"
                    " for"
                )
            graded += self._graded(question, kind, prompt, request, reply)
        prompt_tokens = sum(len(request.prompt_ids) for _, request in asked)
        return graded, {"prompt_tokens": prompt_tokens, "retries": retries}

    def _request(self, question: Question, kind: PromptKind, n: int) -> tuple[str, SampleRequest]:
        """The prompt as text, and what the engine is asked. Raises _Refused where it is too
        long."""
        job, sampling = self._job, self._job.plan.sampling
        prompt, prompt_ids = encode_prompt(question, kind, job.tokenizer)
        if len(prompt_ids) + sampling.max_tokens > job.max_model_len:
            raise _Refused(
                "prompt_too_long",
                f"its {kind} prompt has {len(prompt_ids)} tokens, and with sampling.max_tokens"
                f" ({sampling.max_tokens}) that is above the engine's {job.max_model_len}."
                " Lower max_tokens or raise max_model_len under resources",
            )
        return prompt, SampleRequest(
            prompt_ids=tuple(prompt_ids),
            n=n,
            seed=request_seed(job.plan.seed, question.id, kind),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            version=job.version,
        )

    async def _send(
        self, requests: tuple[SampleRequest, ...], question_id: str
    ) -> tuple[tuple[SampleReply, ...], int]:
        """The engine's replies and how often it had to be asked again."""
        failures: list[Exception] = []
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                while len(failures) < _ATTEMPTS:
                    try:
                        return await self._job.handle.sample.remote(requests), len(failures)
                    except SirtError:
                        raise
                    except Exception as error:
                        # Flaky edge: a replica may be lost or restarted at any moment, and Ray has
                        # many names for that.
                        await asyncio.sleep(_FIRST_BACKOFF_SECONDS * 2 ** len(failures))
                        failures.append(error)
        except TimeoutError:
            raise StageError(
                f"the engine did not answer question {question_id} within"
                f" {_DEADLINE_SECONDS:.0f} s. Its log is in Ray's session folder"
            ) from None
        reason = str(failures[0]).strip().splitlines()[-1]
        raise StageError(
            f"the engine failed {_ATTEMPTS} times on question {question_id}. First: {reason}"
        )

    def _graded(
        self,
        question: Question,
        kind: PromptKind,
        prompt: str,
        request: SampleRequest,
        reply: SampleReply,
    ) -> list[Graded]:
        all_ids = [choice.completion_ids for choice in reply.choices]
        texts = completion_texts(self._job.tokenizer, request.prompt_ids, all_ids)
        graded: list[Graded] = []
        for index, (choice, text) in enumerate(zip(reply.choices, texts, strict=True)):
            completion = Completion(
                question_id=question.id,
                benchmark=question.benchmark,
                prompt_kind=kind,
                sample_index=index,
                prompt=prompt,
                text=text,
                prompt_ids=request.prompt_ids,
                completion_ids=choice.completion_ids,
                stop_reason=stop_reason(choice.finish_reason),
                model_version=reply.version,
                seed=request.seed,
            )
            verdict, extracted = self._job.grade(text, question)
            graded.append(Graded(completion, verdict, extracted, question.reference))
        return graded
