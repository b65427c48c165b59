"""Sampling one block of questions: what the sampling actors run.

question --encode--> requests --RetryingClient--> replies --decode, grade--> Graded --> one part file
"""

import asyncio
import errno
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from sirt_ray.artifacts import parquet
from sirt_ray.config.job import SamplingConfig
from sirt_ray.errors import SirtError, StageError
from sirt_ray.logs import LogContext, bind_context
from sirt_ray.on_ray.engine.protocol import SampleReply, SampleRequest
from sirt_ray.on_ray.metrics import Emitter, count_part
from sirt_ray.on_ray.sampling.prompts import Prompter
from sirt_ray.on_ray.sampling.questions import QuestionFile
from sirt_ray.on_ray.sampling.retry import QuestionRequests, RetryingClient, SampleFailure
from sirt_ray.storage import object_store
from sirt_ray.types import Completion, Graded, Judgement, PromptKind, Question, StopReason

Grade = Callable[[str, Question], Judgement]
"""(completion's text, its question) -> what the verifier says of it."""

Used = defaultdict[str, Any]
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
    "retries",
    "prompt_tokens",
    "completion_tokens",
    "cost",
)
"""The counts of a part that add up over parts."""


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
    prompter: Prompter
    out: str
    """The folder, as every node knows it."""
    version: str
    max_model_len: int
    chunk: int
    """Questions in one call to the engine."""
    calls_in_flight: int
    """Calls that one actor has under way: as many as fill the replicas that it feeds."""
    timeout_s: float
    """For the engine's answer to one call."""
    context: LogContext


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


class BlockSampler:
    """Samples blocks of questions, several at once.

    Consumes positions of questions. Produces each block's part file and its counts. Waits for the
    engines and, on failure, asks again (`RetryingClient`); raises SirtError where an error does not pass.
    """

    def __init__(self, job: BlockJob) -> None:
        self._job = job
        self._out = object_store.to_local_path(job.out)
        self._questions = QuestionFile(self._out)
        self._asker = RetryingClient(job.handle, job.calls_in_flight, job.timeout_s)
        self._emitter = Emitter(job.context)

    async def sample(self, first: int, count: int, lost: int) -> dict[str, Any]:
        """Sample the questions, write the part, and return its counts. `lost`: how often that was
        begun before."""
        with bind_context(self._job.context):
            return await self._sample(first, count, lost)

    async def _sample(self, first: int, count: int, lost: int) -> dict[str, Any]:
        questions = self._questions.read(first, count)
        chunks = [
            questions[start : start + self._job.chunk] for start in range(0, count, self._job.chunk)
        ]
        made: Counter[str] = Counter(dict.fromkeys(SUMMED, 0))
        made["retries"] = lost * len(chunks)
        graded: list[Graded] = []
        dropped: list[dict[str, str]] = []
        for outcomes, used in await asyncio.gather(*map(self._chunk, chunks)):
            made.update(used)
            for question_id, outcome in outcomes:
                if isinstance(outcome, SampleFailure):
                    message, reason = outcome.message, outcome.reason
                    dropped.append({"id": question_id, "reason": reason, "message": message})
                else:
                    graded += outcome
        for answer in graded:
            made.update([answer.verdict, "completions"])
            made["truncated"] += answer.completion.stop_reason == "length"
        made["questions"] = count
        counts = {**made, "first": first, "first_id": questions[0].id, "dropped": dropped}
        await asyncio.to_thread(self._write, graded, counts)
        count_part(self._emitter, counts)
        return counts

    def _write(self, graded: list[Graded], counts: dict[str, Any]) -> None:
        part = self._out / f"part-{counts['first']:07d}.parquet"
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

    async def _chunk(
        self, questions: Sequence[Question]
    ) -> tuple[list[tuple[str, list[Graded] | SampleFailure]], Used]:
        """What became of each question, and what it took."""
        ready: dict[str, QuestionRequests] = {}
        found: dict[str, list[Graded] | SampleFailure] = {}
        for question in questions:
            asked = self._asked(question)
            if isinstance(asked, SampleFailure):
                found[question.id] = asked
            else:
                ready[question.id] = asked
        used: Used = defaultdict(int)
        if ready:
            outcomes, used["retries"] = await self._asker.ask(list(ready.values()))
            answers = dict(zip(ready, outcomes, strict=True))
            written: list[tuple[Question, Completion]] = []
            for question in questions:
                if question.id in answers:
                    asked, outcome = ready[question.id], answers[question.id]
                    if isinstance(outcome, SampleFailure):
                        found[question.id] = outcome
                    else:
                        written += self._completions(question, asked, outcome, used)
            # A formula may take a second, and the other questions' answers must not wait for it.
            found.update(await asyncio.to_thread(self._grade, written, used))
        return [(question.id, found[question.id]) for question in questions], used

    def _asked(self, question: Question) -> QuestionRequests | SampleFailure:
        """What the engine is asked about the question, unless its prompt is too long."""
        job, sampling = self._job, self._job.plan.sampling
        requests: list[SampleRequest] = []
        for kind, n in job.plan.requests_about(question):
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
                )
            )
        return QuestionRequests(question.id, tuple(requests))

    def _completions(
        self,
        question: Question,
        asked: QuestionRequests,
        replies: Sequence[SampleReply],
        used: Used,
    ) -> list[tuple[Question, Completion]]:
        """What was written to all the question's requests; adds what it took to `used`."""
        written: list[tuple[Question, Completion]] = []
        requests = self._job.plan.requests_about(question)
        for (kind, _), request, reply in zip(requests, asked.requests, replies, strict=True):
            answered = reply.answered
            got = 0 if answered is None else len(answered.choices)
            if answered is None or reply.version != self._job.version or got != request.n:
                raise StageError(
                    f"the engine answered question {question.id} with {got} completions of"
                    f" '{reply.version}'; {request.n} of '{self._job.version}' were asked for"
                )
            used["prompt_tokens"] += answered.prompt_tokens
            used["completion_tokens"] += answered.completion_tokens
            used["retries"] += answered.retries
            used["cost"] += answered.cost
            texts = self._job.prompter.texts(request.prompt_ids, answered.choices)
            for index, (choice, text) in enumerate(zip(answered.choices, texts, strict=True)):
                completion = Completion(
                    question_id=question.id,
                    benchmark=question.benchmark,
                    prompt_kind=kind,
                    sample_index=index,
                    prompt=request.prompt,
                    text=text,
                    prompt_ids=request.prompt_ids,
                    completion_ids=choice.completion_ids,
                    stop_reason=stop_reason(choice.finish_reason),
                    model_version=request.version,
                    seed=request.seed,
                )
                written.append((question, completion))
        return written

    def _grade(
        self, written: Sequence[tuple[Question, Completion]], used: Used
    ) -> dict[str, list[Graded]]:
        """The graded completions by question; adds to `used` how many final answers were guessed,
        and how many could not be compared with the reference."""
        graded: defaultdict[str, list[Graded]] = defaultdict(list)
        for question, completion in written:
            found = self._job.grade(completion.text, question)
            used["guessed"] += found.extracted is not None and not found.stated
            used["undecided"] += found.undecided
            graded[question.id].append(
                Graded(completion, found.verdict, found.extracted, question.reference)
            )
        return graded


class SamplingActor:
    """The actor that samples blocks, in a process of its own."""

    def __init__(self) -> None:
        import transformers.tokenization_utils_tokenizers  # noqa: F401  Tokenizers come with jobs.
        from ray.serve import handle  # noqa: F401  So do handles.

        self._job = ""
        self._sampler: BlockSampler | None = None

    @ray.method(max_task_retries=-1)
    async def ping(self) -> None:
        """Return once the actor is alive. Ray retries until then: calls of a lost node's actors
        fail at once while the loss is not yet noticed."""

    async def sample(
        self, job: tuple[str, list[Any]], first: int, count: int, deaths: int
    ) -> dict[str, Any]:
        """Sample a block. `job`: its name and its reference, fetched once for all blocks of the
        job. `deaths`: how often an actor has died with this block."""
        name, (reference,) = job
        if name != self._job:
            fetched = await reference
            if name != self._job:
                self._job, self._sampler = name, BlockSampler(fetched)
        assert self._sampler is not None
        try:
            return await self._sampler.sample(first, count, deaths)
        except SirtError as error:
            # The cause of an error that a replica raised would be lost on a second way home.
            raise StageError(str(getattr(error, "cause", error))) from None
