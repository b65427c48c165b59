"""A model behind an OpenAI-compatible endpoint as the engine of a replica: without a GPU, without
token ids, and with weights that cannot be replaced.

    SampleRequest --as many calls as it takes--> n choices
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sirt_ray.config.job import JobConfig
from sirt_ray.config.resources import EngineConfig
from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.endpoint.request import EndpointRequest, UnansweredError, api_key
from sirt_ray.errors import StageError
from sirt_ray.on_ray.engine.protocol import (
    ENDPOINT_FAILED,
    REFUSED,
    ReplicaLoad,
    SampledChoice,
    SampleFailure,
    SampleRequest,
    SampleResult,
)
from sirt_ray.storage.uri import user_path

if TYPE_CHECKING:
    from sirt_ray.endpoint.client import Answer, EndpointClient

_LONGEST_PAUSE_SECONDS = 60.0
_ANY_LENGTH = 2**31 - 1
"""Only the endpoint knows how long a prompt may be; it refuses a longer one."""


def endpoint_engine(job: JobConfig, run_dir: Path) -> "EndpointEngine | None":
    """Return the engine for the job's teacher; None where the teacher is behind no endpoint. The
    node of the replica must have `run_dir` under the same path."""
    config = job.teacher.endpoint
    if config is None:
        return None
    folder = user_path(config.cache) if config.cache else run_dir / "endpoint"
    return EndpointEngine(config, folder.absolute())


def endpoint_resources(endpoint: EndpointConfig, samples_per_question: int) -> EngineConfig:
    """Return the resources of the one replica that calls the endpoint. Its requests may wait there
    for the rate limit, and then for every attempt and pause that the settings allow."""
    pace = endpoint.requests_per_minute
    queued_s = 0.0 if pace is None else 2 * endpoint.max_in_flight * 60 / pace
    attempts = endpoint.max_retries + 2  # The last one checks the endpoint.
    return EngineConfig(
        device="cpu",
        num_cpus=0.1,
        max_num_seqs=endpoint.max_in_flight * samples_per_question,
        request_timeout_s=queued_s + attempts * (endpoint.timeout_s + _LONGEST_PAUSE_SECONDS),
    )


class EndpointEngine:
    """`protocol.Engine` on an endpoint. Before `start` it is a description that can be pickled.

    Consumes requests with a text. Produces all their choices, with texts and without ids. Waits
    for: the rate limit, free calls, budget that calls in flight reserve. On failure: errors that
    may pass are retried here; a request that the endpoint refuses, or cannot answer, is a failed
    result; a SirtError ends the stage.

    One replica has one budget and one rate limit: run no second one at the same time.
    """

    def __init__(self, config: EndpointConfig, folder: Path, first_pause: float = 1.0) -> None:
        self._config = config
        self._folder = folder
        self._first_pause = first_pause
        self._started: EndpointClient | None = None

    async def start(self, policy: Policy) -> None:
        """Make the client, without a call: a run whose replies are all in the cache needs no
        network."""
        # Only here, and not in the driver: the HTTP client takes a second to import.
        from sirt_ray.endpoint.client import EndpointClient

        self._started = EndpointClient(
            self._config, self._folder, api_key(self._config), self._first_pause
        )

    async def load(self, policy: Policy) -> None:
        """Raise StageError: the weights belong to the provider."""
        raise StageError(
            f"the model behind {self._config.url} cannot take the weights of '{policy.version}':"
            " only a teacher may be behind an endpoint"
        )

    async def complete(self, request: SampleRequest) -> SampleResult:
        """Return all choices of a request. An endpoint that gives fewer than `n` at once is called
        again for the rest, under the seeds that those would have had.

        A choice that was ended by a content filter or a tool call is an empty text: it is counted
        as unparseable and never learned from. Where every choice is one, the request is refused.
        A request whose attempts have all failed is given up, and has the reason
        `endpoint_failed`; an endpoint that answers none ends the stage.
        """
        answers: list[Answer] = []
        texts: list[SampledChoice] = []
        ended_by: list[str] = []
        failure: SampleFailure | None = None
        retries, cost = 0, 0.0
        while len(texts) < request.n and failure is None:
            try:
                answer = await self._client.answer(_endpoint_request(request, first=len(texts)))
            except UnansweredError as error:
                reason = REFUSED if error.refused else ENDPOINT_FAILED
                failure = SampleFailure(reason, str(error))
                retries, cost = retries + error.retries, cost + error.cost
                continue
            retries, cost = retries + answer.retries, cost + answer.cost
            answers.append(answer)
            for written in answer.reply.choices:
                texts.append(SampledChoice((), written.stop_reason or "stop", written.text))
                ended_by += [written.ended_by] if written.stop_reason is None else []
        if failure is None and len(ended_by) == len(texts):
            reasons = ", ".join(sorted(set(ended_by)))
            failure = SampleFailure(REFUSED, f"all choices were ended by: {reasons}")
        if failure is not None:
            return SampleResult(retries=retries, cost=cost, failure=failure)
        return SampleResult(
            tuple(texts),
            prompt_tokens=answers[0].reply.use.prompt_tokens,
            completion_tokens=sum(answer.reply.use.completion_tokens for answer in answers),
            retries=retries,
            cached=all(answer.cached for answer in answers),
            cost=cost,
        )

    async def check_health(self) -> None:
        """Nothing here can die; an endpoint that is down shows in the requests."""

    def load_now(self) -> ReplicaLoad:
        """Return how busy the client is."""
        client = self._client
        waiting = client.accepted - client.running
        return ReplicaLoad(client.running, waiting, held_s=client.paused_seconds)

    @property
    def max_model_len(self) -> int:
        return _ANY_LENGTH

    @property
    def _client(self) -> "EndpointClient":
        assert self._started is not None, "start comes first"
        return self._started


def _endpoint_request(request: SampleRequest, first: int) -> EndpointRequest:
    """Return the request for the choices from number `first` on."""
    return EndpointRequest(
        prompt=request.prompt,
        n=request.n - first,
        first=first,
        seed=request.seed,
        temperature=request.temperature,
        top_p=request.top_p,
        max_tokens=request.max_tokens,
    )
