"""What callers exchange with a replica: small records, so that neither the driver nor the sampling
actors have to import vLLM (7 s, 0.6 GB).

    SampleRequests of some questions --Replica.sample--> SampleResults
"""

from dataclasses import dataclass
from typing import Protocol

from sirt_ray.core.interfaces import Policy
from sirt_ray.types import PromptKind


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """A request for `n` completions of one prompt."""

    prompt: str
    prompt_ids: tuple[int, ...]
    """Empty for an engine that tokenises by itself: one behind an endpoint takes the text."""
    n: int
    seed: int
    """Of the first completion; completion number i is drawn with this seed plus i."""
    temperature: float
    top_p: float
    max_tokens: int
    version: str
    """The weights that must write the completions."""
    question_id: str = ""
    """The question of the prompt. All requests of a question are made and dropped together."""
    prompt_kind: PromptKind = "cot"


@dataclass(frozen=True, slots=True)
class SampledChoice:
    """One completion."""

    completion_ids: tuple[int, ...]
    """With the end-of-sequence token, where the model wrote one. Empty for an engine that returns
    text only."""
    finish_reason: str
    text: str | None = None
    """None: to be decoded from the ids."""


REFUSED = "refused_by_engine"
"""Reason of a failure: the engine or endpoint will never complete this request."""
ENDPOINT_FAILED = "endpoint_failed"
"""Reason of a failure: all attempts at this request failed while others were answered."""


@dataclass(frozen=True, slots=True)
class SampleFailure:
    """Why a request has no completions."""

    reason: str
    """A name to count failures by: `prompt_too_long`, `engine_failed`, or one of those above."""
    message: str
    """The reason in words, for the user."""


@dataclass(frozen=True, slots=True)
class SampleResult:
    """The completions of one request and their cost, or why there are none."""

    choices: tuple[SampledChoice, ...] = ()
    """In the order of the samples."""
    prompt_tokens: int = 0
    """Once for the request, whatever its `n`."""
    completion_tokens: int = 0
    retries: int = 0
    """Retries of the engine itself."""
    cached: bool = False
    """Nothing was computed: the same request had been completed before."""
    cost: float = 0.0
    """In the currency of the job's prices."""
    failure: SampleFailure | None = None
    """Set where the request has not been completed and must not be retried; there are no choices
    then. `retries` and `cost` count all the same."""

    @classmethod
    def refused(cls, message: str) -> "SampleResult":
        """Return the result of a request that the engine will never complete."""
        return cls(failure=SampleFailure(REFUSED, message))


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """What a replica runs."""

    version: str
    max_model_len: int
    process_ids: tuple[int, ...]
    """The replica's process, then those of the engine below it."""


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """How busy one replica is, and what it has done since it started."""

    running: int = 0
    """Sequences that decode now."""
    waiting: int = 0
    """Sequences that are queued in the engine."""
    generated_tokens: int = 0
    prefix_queried_tokens: int = 0
    """Prompt tokens that were looked up in the prefix cache."""
    prefix_hit_tokens: int = 0
    held_s: float = 0.0
    """Seconds in which no request is started, because an endpoint has requested a pause."""


class EngineDeadError(Exception):
    """The engine cannot come back: its process is gone."""


class Engine(Protocol):
    """One model that completes prompts; what a replica needs of it.

    Made by the driver as a plain description, started inside the replica.
    """

    async def start(self, policy: Policy) -> None:
        """Load the policy's weights. Raises any error for which the engine cannot start."""
        ...

    async def load(self, policy: Policy) -> None:
        """Load other weights, while no request is in flight."""
        ...

    async def complete(self, request: SampleRequest) -> SampleResult:
        """Return the completions, or a failure where the engine will never complete the request.

        Raises EngineDeadError, a SirtError that ends the stage, or any other error that may pass.
        """
        ...

    async def check_health(self) -> None:
        """Raise where the engine is dead."""
        ...

    def load_now(self) -> ReplicaLoad:
        """Return how busy the engine is."""
        ...

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        ...
