"""What callers exchange with a replica: small records, so that neither the driver nor the sampling
actors have to import vLLM (7 s, 0.6 GB).

    SampleRequests of some questions --Replica.sample--> SampleReplies
"""

from dataclasses import dataclass
from typing import Protocol

from sirt_ray.core.interfaces import Policy


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """`n` completions of one prompt. `version`: the weights that must write them."""

    prompt: str
    prompt_ids: tuple[int, ...]
    """Empty where the engine tokenises by itself: one behind an endpoint takes the text."""
    n: int
    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    version: str


@dataclass(frozen=True, slots=True)
class SampledChoice:
    completion_ids: tuple[int, ...]
    """With the end-of-sequence token, where the model wrote one. Empty where the engine says only
    what the text is."""
    finish_reason: str
    text: str | None = None
    """None: to be decoded from the ids."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An engine's answer to one request, and what it took."""

    choices: tuple[SampledChoice, ...]
    """In the order of the samples."""
    prompt_tokens: int
    """Once for the request, whatever its `n`."""
    completion_tokens: int
    retries: int = 0
    """By the engine itself, inside."""
    cached: bool = False
    """Nothing was computed: the same request had been answered before."""
    cost: float = 0.0
    """In the currency of the job's prices."""


@dataclass(frozen=True, slots=True)
class SampleReply:
    version: str
    answered: Answered | None
    refused: str | None = None
    """Why the engine will never answer this request; there is no answer then."""


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    version: str
    max_model_len: int
    process_ids: tuple[int, ...]
    """The replica's own, then those of the engine's processes below it."""


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """How busy one replica is, and what it has done since it started."""

    running: int = 0
    """Sequences that decode now."""
    waiting: int = 0
    """Sequences that wait for a place in the engine."""
    generated_tokens: int = 0
    prefix_queried_tokens: int = 0
    """Prompt tokens that were looked up in the prefix cache."""
    prefix_hit_tokens: int = 0
    held_s: float = 0.0
    """Seconds in which it will begin no request, because an endpoint has asked for a pause."""


class RefusedError(Exception):
    """The engine will never answer this request; the message says why."""


class EngineDeadError(Exception):
    """The engine cannot come back: its process is gone."""


class Engine(Protocol):
    """One model that completes prompts; what a replica needs of it.

    Made by the driver as a plain description, started inside the replica.
    """

    async def start(self, policy: Policy) -> None: ...

    async def load(self, policy: Policy) -> None:
        """Other weights, while no request is under way."""
        ...

    async def complete(self, request: SampleRequest) -> Answered:
        """Raises RefusedError, EngineDeadError, a SirtError that ends the stage, or whatever else
        goes wrong and may pass."""
        ...

    async def check_health(self) -> None: ...

    def load_now(self) -> ReplicaLoad: ...

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        ...
