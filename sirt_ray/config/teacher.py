"""The `teacher` of a job file: a model that is served here, one behind an endpoint, or a file.

Exactly one of `teacher.model`, `teacher.endpoint` and `teacher.demonstrations` says who taught.
"""

import json
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from sirt_ray.config.base import SamplingConfig, Section
from sirt_ray.storage.uri import checked_model

Price = Annotated[float, Field(ge=0.0)]

_NOT_FOR_EXTRA_BODY = ("model", "messages", "prompt", "stream")


class EndpointConfig(Section):
    """A model behind an OpenAI-compatible endpoint: a provider's, or a server of one's own.

    Only `model`, `api` and `extra_body` say what is answered and are part of a result's identity.
    """

    url: str
    """Base URL, e.g. `http://127.0.0.1:8000/v1`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    api: Literal["chat", "completions"] = "chat"
    """`chat`: the question is sent as a user's message. `completions`: as the plain prompt that is
    continued, for models without a chat template."""
    extra_body: dict[str, JsonValue] = Field(default={})
    """Fields to send with every request, e.g. `{top_k: 20}`. They win over our own (`max_tokens`,
    `temperature`, `top_p`, `seed`, `n`); null takes one of those out, for a provider that does not
    know it."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key, on the node that asks. Null: no key is sent."""
    requests_per_minute: PositiveFloat | None = None
    """None: as fast as `max_in_flight` lets it be."""
    max_in_flight: PositiveInt = 16
    """Requests that are under way at the same time."""
    timeout_s: PositiveFloat = 300
    """For one attempt, from sending it to the whole reply."""
    max_retries: NonNegativeInt = 6
    """Further attempts at a request that failed in a way that may pass (408, 409, 429, 5xx, no
    connection, no reply in time). The pauses double from one to at most 60 seconds, each of them
    drawn between nothing and that, unless the endpoint says how long to wait."""
    price_per_million_prompt_tokens: Price | None = None
    price_per_million_completion_tokens: Price | None = None
    max_tokens_total: PositiveInt | None = None
    """Prompt and completion tokens that may be paid for, all starts of the job together; then the
    run stops and can be continued. A request is only sent if its longest answer fits."""
    max_cost: PositiveFloat | None = None
    """Likewise in the currency of the prices."""
    cache: str | None = None
    """Folder of paid answers, none of which is paid for twice, and of the record of what was spent;
    jobs may share one. Every node must see it. None: `endpoint` in the run folder."""

    @field_validator("url")
    @classmethod
    def _base_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be the endpoint's base URL, as in http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "must be a base URL and nothing else: it is written to the run folder. A key"
                " belongs into the environment variable named by api_key_env"
            )
        return url

    @field_validator("extra_body")
    @classmethod
    def _left_to_us(cls, extra_body: dict[str, JsonValue]) -> dict[str, JsonValue]:
        taken = [name for name in _NOT_FOR_EXTRA_BODY if name in extra_body]
        if taken:
            raise ValueError(f"must not hold {', '.join(taken)}: these are set for every request")
        return extra_body

    @model_validator(mode="after")
    def _prices_for_a_cost(self) -> "EndpointConfig":
        prices = (self.price_per_million_prompt_tokens, self.price_per_million_completion_tokens)
        if self.max_cost is not None and None in prices:
            raise ValueError(
                "max_cost needs price_per_million_prompt_tokens and"
                " price_per_million_completion_tokens: without both nothing can be said about a"
                " cost. Give them, or bound max_tokens_total instead"
            )
        return self

    @property
    def identity(self) -> str:
        """What answers, wherever it is asked."""
        extra = json.dumps(self.extra_body, sort_keys=True) if self.extra_body else ""
        return f"endpoint:{self.api}:{self.model}{extra}"


class DemonstrationFileConfig(Section):
    """Answers that lie in a file already: one row for each, of the training questions.

    Rows find their question by its id, else by its text, without regard to case and spacing; a
    text may also be the whole prompt as this project renders it. Several answers to one question
    are tried in the order of the file.
    """

    path: str
    """A `.parquet`, `.jsonl`, `.json` or `.csv` file."""
    completion_column: str = "completion"
    """The answer: reasoning and final answer."""
    question_id_column: str = "question_id"
    """The question's id, `<benchmark>/train/<row>`. This column or the next may be missing."""
    question_column: str = "question"
    """The question's text, or its prompt."""
    benchmark_column: str = "benchmark"
    """May be missing: then texts are looked for in all training benchmarks."""

    @property
    def columns(self) -> dict[str, str]:
        """What each column is, by the setting that names it."""
        return self.model_dump(exclude={"path"})


class TeacherConfig(Section):
    model: Annotated[str, AfterValidator(checked_model)] | None = None
    """Path or hub name, `quickstart:teacher` for the one that is shipped."""
    revision: str | None = None
    """Of `model`, on the hub."""
    endpoint: EndpointConfig | None = None
    demonstrations: DemonstrationFileConfig | None = None
    """Nobody is asked, so the teacher itself is not evaluated."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.1)
    """How `model` or `endpoint` is asked for demonstrations."""

    @model_validator(mode="after")
    def _one_source(self) -> "TeacherConfig":
        sources = {
            "model": self.model,
            "endpoint": self.endpoint,
            "demonstrations": self.demonstrations,
        }
        given = [name for name, source in sources.items() if source is not None]
        if len(given) != 1:
            raise ValueError(
                "needs exactly one of model (a model that is served here), endpoint (one behind an"
                " OpenAI-compatible URL) and demonstrations (a file of answers), but has"
                f" {' and '.join(given) or 'none'}"
            )
        if self.revision is not None and self.model is None:
            raise ValueError(f"revision is one of a model on the hub, and {given[0]} has none")
        return self

    @property
    def source(self) -> str:
        """Where demonstrations come from: the model's path or name, the endpoint's identity, or the
        file's path."""
        if self.endpoint is not None:
            return self.endpoint.identity
        if self.demonstrations is not None:
            return self.demonstrations.path
        assert self.model is not None
        return self.model

    @property
    def answers(self) -> bool:
        """Whether there is somebody to put a question to."""
        return self.demonstrations is None
