"""The `teacher` of a job file: a model that the run serves, one behind an endpoint, or a file.

The teacher is exactly one of `teacher.model`, `teacher.endpoint` and `teacher.demonstrations`.
"""

import json
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from sirt_ray.config.base import Limit, SamplingConfig, Section
from sirt_ray.storage.uri import checked_model

_NOT_FOR_EXTRA_BODY = ("model", "messages", "prompt", "stream")
"""Fields that every request sets."""


class EndpointConfig(Section):
    """A model behind an OpenAI-compatible endpoint: a provider's, or a server of the user.

    Only `model`, `api` and `extra_body` decide the answers and are part of a result's fingerprint.
    """

    url: str
    """Base URL, e.g. `http://127.0.0.1:8000/v1`."""
    model: str = Field(min_length=1)
    """The model's name at the endpoint."""
    api: Literal["chat", "completions"] = "chat"
    """`chat`: the question is sent as a user's message. `completions`: it is sent as a plain prompt
    to continue, for models without a chat template."""
    extra_body: dict[str, JsonValue] = Field(default={})
    """Fields to send with every request, e.g. `{top_k: 20}`. They override those of the run
    (`max_tokens`, `temperature`, `top_p`, `seed`, `n`); null removes one of those, for a provider
    that does not support it."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable with the key, on the node that sends requests. Null: no key is sent."""
    requests_per_minute: Limit | None = None
    """Rate limit; None: as fast as `max_in_flight` allows."""
    max_in_flight: PositiveInt = 16
    """Concurrent requests."""
    timeout_s: PositiveFloat = 300
    """Timeout of one attempt, from sending the request to the whole reply, in seconds."""
    max_retries: NonNegativeInt = 6
    """Retries of a request after a temporary failure (408, 409, 429, 5xx, no connection, timeout,
    a reply that cannot be read or was broken off); then its question is given up and counted.
    The pauses double from one to at most 60 seconds, with full jitter (each is drawn between 0 and
    that), unless the endpoint sends how long to wait."""
    price_per_million_prompt_tokens: NonNegativeFloat | None = None
    price_per_million_completion_tokens: NonNegativeFloat | None = None
    max_tokens_total: PositiveInt | None = None
    """Budget of prompt and completion tokens, over all starts of the job; when it is spent, the run
    stops and can be resumed. A request is only sent if its longest answer fits in the budget."""
    max_cost: Limit | None = None
    """The same budget in the currency of the prices."""
    cache: str | None = None
    """Folder of the paid answers, so that none is paid for twice, and of the record of what was
    spent; jobs may share one. Every node must see it. None: `endpoint` in the run folder."""

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
    def _without_set_fields(cls, extra_body: dict[str, JsonValue]) -> dict[str, JsonValue]:
        taken = [name for name in _NOT_FOR_EXTRA_BODY if name in extra_body]
        if taken:
            raise ValueError(f"must not hold {', '.join(taken)}: these are set for every request")
        return extra_body

    @model_validator(mode="after")
    def _a_cost_has_prices(self) -> "EndpointConfig":
        prices = (self.price_per_million_prompt_tokens, self.price_per_million_completion_tokens)
        if self.max_cost is not None and None in prices:
            raise ValueError(
                "max_cost needs price_per_million_prompt_tokens and"
                " price_per_million_completion_tokens: without both the cost is unknown. Give"
                " them, or limit max_tokens_total instead"
            )
        return self

    @property
    def identity(self) -> str:
        """The key of what answers, whatever the URL."""
        extra = json.dumps(self.extra_body, sort_keys=True) if self.extra_body else ""
        return f"endpoint:{self.api}:{self.model}{extra}"


class DemonstrationFileConfig(Section):
    """A file of answers to the training questions, one row for each answer.

    Rows are matched to their question by its id, else by its text, ignoring case and spacing; a
    text may also be the whole prompt as this project renders it. Several answers to one question
    are tried in the order of the file.
    """

    path: str
    """A file of rows, or a folder of such files, of any kind of `storage/row_files.py`."""
    completion_column: str = "completion"
    """Column with the answer: reasoning and final answer."""
    question_id_column: str = "question_id"
    """Column with the question's id, `<benchmark>/train/<row>`. It or the next may be missing."""
    question_column: str = "question"
    """Column with the question's text, or its prompt."""
    benchmark_column: str = "benchmark"
    """Column with the benchmark. It may be missing: then texts are searched in all training
    benchmarks."""

    @property
    def columns(self) -> dict[str, str]:
        """Setting that names a column -> the column."""
        return self.model_dump(exclude={"path"})


class TeacherConfig(Section):
    """The source of the demonstrations."""

    model: Annotated[str, AfterValidator(checked_model)] | None = None
    """Path or hub name; `quickstart:teacher` is the model that is shipped with the package."""
    revision: str | None = None
    """Revision of `model` on the hub."""
    endpoint: EndpointConfig | None = None
    demonstrations: DemonstrationFileConfig | None = None
    """A file of answers. Without a model the teacher itself is not evaluated."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.1)
    """How demonstrations are sampled from `model` or `endpoint`."""

    @model_validator(mode="after")
    def _one_source(self) -> "TeacherConfig":
        sources = {
            "model": self.model,
            "endpoint": self.endpoint,
            "demonstrations": self.demonstrations,
        }
        present = [name for name, source in sources.items() if source is not None]
        if len(present) != 1:
            raise ValueError(
                "needs exactly one of model (a model that the run serves), endpoint (one behind an"
                " OpenAI-compatible URL) and demonstrations (a file of answers), but has"
                f" {' and '.join(present) or 'none'}"
            )
        if self.revision is not None and self.model is None:
            raise ValueError(f"revision belongs to a model on the hub, and {present[0]} has none")
        return self

    @property
    def source(self) -> str:
        """The source of the demonstrations: the model's path or name, the endpoint's key, or the
        file's path."""
        if self.endpoint is not None:
            return self.endpoint.identity
        if self.demonstrations is not None:
            return self.demonstrations.path
        assert self.model is not None
        return self.model

    @property
    def answers(self) -> bool:
        """Whether the teacher is a model that can be sampled from."""
        return self.demonstrations is None
