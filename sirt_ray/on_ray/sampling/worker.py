"""What the sampling actors run: blocks of questions -> part files of graded completions.

block --SamplingActor--> chunks --ChunkSampler--> SampleRequests --RetryingClient--> SampleResults
      --decode, grade--> Graded --> one part file
"""

import asyncio
import errno
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from sirt_ray.artifacts import parquet
from sirt_ray.config.job import SamplingConfig
from sirt_ray.core.repetition import count_ngrams
from sirt_ray.errors import SirtError, StageError
from sirt_ray.logs import LogContext, bind_context, log_event
from sirt_ray.on_ray.engine.protocol import (
    ENDPOINT_FAILED,
    SampleFailure,
    SampleRequest,
    SampleResult,
)
from sirt_ray.on_ray.metrics import Emitter, count_part
from sirt_ray.on_ray.sampling.prompts import Prompter
from sirt_ray.on_ray.sampling.questions import QuestionFile
from sirt_ray.on_ray.sampling.retry import RetryingClient
from sirt_ray.storage import object_store
from sirt_ray.types import Completion, Graded, Judgement, PromptKind, Question, StopReason

Grade = Callable[[str, Question], Judgement]
"""(completion's text, its question) -> the verifier's judgement."""

QuestionResults = dict[str, list[Graded] | SampleFailure]
"""Question id -> its graded completions, or why it has none."""

Counts = defaultdict[str, Any]
"""Counts by name, and the cost."""

SUMMED = (
    "questions",
    "completions",
    "right",
    "wrong",
    "unparseable",
    "guessed",
    "undecided",
    "truncated",
    "ngrams",
    "repeated_ngrams",
    "retries",
    "prompt_tokens",
    "completion_tokens",
    "cost",
)
"""The counts of a part that add up over parts."""


@dataclass(frozen=True)
class SamplingPlan:
    """What is sampled for every question.

    Example::

        SamplingPlan({"cot": 8, "plain": 1}, SamplingConfig(temperature=0.7), seed=0)
    """

    completions: Mapping[PromptKind, int]
    """Prompt kind -> completions. Each kind is one request, in this order."""
    sampling: SamplingConfig
    seed: int
    cot_only: frozenset[str] = frozenset()
    """Ids of questions that are sampled with the trigger only."""

    def completions_of(self, question: Question) -> dict[PromptKind, int]:
        """Return the prompt kinds of the question, with the completions of each."""
        only = question.id in self.cot_only
        return {kind: n for kind, n in self.completions.items() if kind == "cot" or not only}

    @property
    def samples_per_question(self) -> int:
        """Completions of one question, of all prompt kinds."""
        return sum(self.completions.values())


@dataclass(frozen=True)
class SamplingJob:
    """What a sampling actor needs to know; the same for all blocks."""

    plan: SamplingPlan
    prompter: Prompter
    grade: Grade
    out: str
    """The folder's URI, or its path on a disk that all nodes share."""
    handle: Any
    """Serve's handle of the engines."""
    version: str
    max_model_len: int
    chunk: int
    """Questions in one call to an engine."""
    calls_in_flight: int
    """Calls that one actor has in flight: as many as fill the replicas that it feeds."""
    timeout_s: float
    """For the engine's reply to one call."""
    context: LogContext


def request_seed(seed: int, question_id: str, kind: PromptKind) -> int:
    """Return the seed of one request: the same whenever and with whatever else it is sampled.
    Completion number i of the request is drawn with this seed plus i."""
    digest = hashlib.blake2b(f"{seed}/{question_id}/{kind}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def stop_reason(finish_reason: str) -> StopReason:
    """Return the stop reason by the engine's name for it. Raises StageError for any other end."""
    if finish_reason == "stop":
        return "stop"
    if finish_reason == "length":
        return "length"
    raise StageError(
        f"the engine ended a completion for the reason '{finish_reason}', which is neither the"
        " model's own end ('stop') nor the token limit ('length')"
    )


class SamplingActor:
    """The actor that samples blocks of questions, several at once, in a process of its own.

    Consumes positions of questions. Produces each block's part file and its counts. Waits for: the
    engines. On failure: retries (`RetryingClient`), and raises StageError where an error does not
    pass.
    """

    def __init__(self) -> None:
        import transformers.tokenization_utils_tokenizers  # noqa: F401  Tokenizers come with jobs.
        from ray.serve import handle  # noqa: F401  So do handles.

        self._job = ""
        self._sampler: ChunkSampler | None = None

    @ray.method(max_task_retries=-1)
    async def ping(self) -> None:
        """Return once the actor is alive. Ray retries until then: calls of a lost node's actors
        fail at once while the loss is not yet noticed."""

    async def sample(
        self, job: tuple[str, list[Any]], first: int, count: int, deaths: int
    ) -> dict[str, Any]:
        """Sample the questions, write the part, and return its counts.

        `job`: its name and its reference, fetched once for all blocks of the job. `deaths`: how
        often an actor has died with this block.
        """
        name, (reference,) = job
        if name != self._job:
            fetched = await reference
            if name != self._job:
                self._job, self._sampler = name, ChunkSampler(fetched)
        sampler = self._sampler
        assert sampler is not None
        try:
            with bind_context(sampler.job.context):
                questions = sampler.questions.read(first, count)
                size = sampler.job.chunk
                chunks = [questions[start : start + size] for start in range(0, count, size)]
                found = await asyncio.gather(*map(sampler.sample, chunks))
                graded, counts, dropped = _collect(found)
                counts |= {
                    "questions": count,
                    "retries": counts["retries"] + deaths * len(chunks),
                    "first": first,
                    "first_id": questions[0].id,
                    "dropped": dropped,
                }
                await asyncio.to_thread(_write_part, sampler.out, graded, counts)
                count_part(sampler.emitter, counts)
                return counts
        except SirtError as error:
            # The cause of an error that a replica raised would be lost on a second way home.
            raise StageError(str(getattr(error, "cause", error))) from None


def _collect(
    found: Sequence[tuple[QuestionResults, Counts]],
) -> tuple[list[Graded], dict[str, Any], list[dict[str, str]]]:
    """Return a block's graded completions, its counts, and the questions that were dropped."""
    counts: Counter[str] = Counter(dict.fromkeys(SUMMED, 0))
    graded: list[Graded] = []
    dropped: list[dict[str, str]] = []
    for results, used in found:
        counts.update(used)
        for question_id, result in results.items():
            if isinstance(result, SampleFailure):
                drop = {"id": question_id, "reason": result.reason, "message": result.message}
                dropped.append(drop)
            else:
                graded += result
    for one in graded:
        counts.update([one.verdict, "completions"])
        counts["truncated"] += one.completion.stop_reason == "length"
        ngrams, repeated = count_ngrams(one.completion.text)
        counts["ngrams"] += ngrams
        counts["repeated_ngrams"] += repeated
    return graded, dict(counts), dropped


def _write_part(out: Path, graded: list[Graded], counts: dict[str, Any]) -> None:
    part = out / f"part-{counts['first']:07d}.parquet"
    try:
        parquet.write(part, map(parquet.to_row, graded), parquet.GRADED, counts)
        object_store.push(part)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StageError(
            f"{part} cannot be written: {error.strerror}."
            f" {'Free some space' if full else 'Look at the folder'}, then run the same command"
            " again: it continues behind what is finished"
        ) from error


class ChunkSampler:
    """Samples chunks of questions for one job: those that travel to an engine in one call."""

    def __init__(self, job: SamplingJob) -> None:
        self.job = job
        self.out = object_store.to_local_path(job.out)
        self.questions = QuestionFile(self.out)
        self.emitter = Emitter(job.context)
        self._client = RetryingClient(job.handle, job.calls_in_flight, job.timeout_s)

    async def sample(self, questions: Sequence[Question]) -> tuple[QuestionResults, Counts]:
        """Return the result of each question, in their order, and the counts of the chunk."""
        results: QuestionResults = {}
        requests: list[SampleRequest] = []
        for question in questions:
            prepared = self._requests(question)
            if isinstance(prepared, SampleFailure):
                results[question.id] = prepared
            else:
                results[question.id] = []
                requests += prepared
        counts: Counts = defaultdict(int)
        if requests:
            replies, counts["retries"] = await self._client.sample(requests)
            for request, reply in zip(requests, replies, strict=True):
                counts["retries"] += reply.retries
                counts["cost"] += reply.cost
                # The first failure of a question is its reason.
                if reply.failure and isinstance(results[request.question_id], list):
                    results[request.question_id] = reply.failure
                    _log_if_unanswered(request.question_id, reply.failure)
            by_id = {question.id: question for question in questions}
            written: list[tuple[Completion, Question]] = []
            for request, reply in zip(requests, replies, strict=True):
                if isinstance(results[request.question_id], list):
                    question = by_id[request.question_id]
                    completions = self._completions(question, request, reply, counts)
                    written += [(completion, question) for completion in completions]
            # A formula may take a second, and the other chunks' completions must not wait for it.
            for graded in await asyncio.to_thread(self._grade, written, counts):
                of_question = results[graded.completion.question_id]
                assert isinstance(of_question, list)
                of_question.append(graded)
        return results, counts

    def _requests(self, question: Question) -> list[SampleRequest] | SampleFailure:
        """Return the requests of the question, unless one of its prompts is too long."""
        job, sampling = self.job, self.job.plan.sampling
        requests: list[SampleRequest] = []
        for kind, n in job.plan.completions_of(question).items():
            prompt, prompt_ids = job.prompter.prompt(question, kind)
            if len(prompt_ids) + sampling.max_tokens > job.max_model_len:
                return SampleFailure(
                    "prompt_too_long",
                    f"its {kind} prompt has {len(prompt_ids)} tokens, and with sampling.max_tokens"
                    f" ({sampling.max_tokens}) that is above the engine's {job.max_model_len}."
                    " Lower max_tokens or raise max_model_len under resources",
                )
            requests.append(
                SampleRequest(
                    prompt=prompt,
                    prompt_ids=prompt_ids,
                    n=n,
                    seed=request_seed(job.plan.seed, question.id, kind),
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    version=job.version,
                    question_id=question.id,
                    prompt_kind=kind,
                )
            )
        return requests

    def _completions(
        self, question: Question, request: SampleRequest, reply: SampleResult, counts: Counts
    ) -> list[Completion]:
        """Return the completions of one request; add what they took to `counts`."""
        if len(reply.choices) != request.n:
            raise StageError(
                f"the engine returned {len(reply.choices)} completions of '{request.version}' for"
                f" question {question.id}; {request.n} were requested"
            )
        counts["prompt_tokens"] += reply.prompt_tokens
        counts["completion_tokens"] += reply.completion_tokens
        texts = self.job.prompter.texts(request.prompt_ids, reply.choices)
        return [
            Completion(
                question_id=question.id,
                benchmark=question.benchmark,
                prompt_kind=request.prompt_kind,
                sample_index=index,
                prompt=request.prompt,
                text=text,
                prompt_ids=request.prompt_ids,
                completion_ids=choice.completion_ids,
                stop_reason=stop_reason(choice.finish_reason),
                model_version=request.version,
                seed=request.seed,
            )
            for index, (choice, text) in enumerate(zip(reply.choices, texts, strict=True))
        ]

    def _grade(
        self, written: Sequence[tuple[Completion, Question]], counts: Counts
    ) -> list[Graded]:
        """Return the graded completions; add to `counts` how many final answers were guessed, and
        how many could not be compared with the reference."""
        graded: list[Graded] = []
        for completion, question in written:
            found = self.job.grade(completion.text, question)
            counts["guessed"] += found.extracted is not None and not found.stated
            counts["undecided"] += found.undecided
            graded.append(Graded(completion, found.verdict, found.extracted, question.reference))
        return graded


def _log_if_unanswered(question_id: str, failure: SampleFailure) -> None:
    """Log a question that the next start will ask again."""
    if failure.reason == ENDPOINT_FAILED:
        message = f"{question_id} was given up: {failure.message}"
        log_event(logging.WARNING, message, "question_failed", question=question_id)
