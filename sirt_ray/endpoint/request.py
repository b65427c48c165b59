"""Requests to an endpoint and their errors, as plain values without HTTP."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.core import prompts
from sirt_ray.endpoint.replies import Api, Usage
from sirt_ray.errors import ConfigError
from sirt_ray.types import PromptKind, Question

Json = dict[str, Any]

_SEED_BITS = 31
"""Some servers accept no larger seeds."""
_TEMPLATE_TOKENS = 64
"""Tokens that a chat template may add to a message."""


@dataclass(frozen=True, slots=True)
class EndpointRequest:
    """A request for `n` completions of one prompt."""

    prompt: str
    n: int
    first: int
    """Number of the first of these completions among all completions of the question."""
    seed: int
    temperature: float
    top_p: float
    max_tokens: int


class RefusedByEndpointError(Exception):
    """The endpoint will never answer this request, for the reason in the message."""


class RetryableError(Exception):
    """An attempt failed, and a retry may succeed. `retry_after_seconds`: the wait that the endpoint
    requests, if any."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


def api_key(config: EndpointConfig) -> str | None:
    """Return the API key from this machine's environment; None if the endpoint needs none. Raises
    ConfigError if the variable is not set."""
    name = config.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"teacher.endpoint.api_key_env: the environment variable {name} is not set on"
            f" {socket.gethostname()}, so {config.url} would refuse every request. Set it there"
            " before Ray is started, name another variable, or set `api_key_env: null` for a"
            " server without keys"
        )
    return key


def prompt_of(api: Api, question: Question, kind: PromptKind) -> str:
    """Return the prompt of a question: a user's message (chat), or a text to be continued."""
    render = prompts.chat_message if api == "chat" else prompts.render
    return render(question, kind)


def request_body(config: EndpointConfig, request: EndpointRequest) -> Json:
    """Return the JSON body of a request. `extra_body` overrides the sampling settings, and a null
    in it removes a field."""
    prompt: Json = (
        {"messages": [{"role": "user", "content": request.prompt}]}
        if config.api == "chat"
        else {"prompt": request.prompt}
    )
    fields: Json = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": (request.seed + request.first) % 2**_SEED_BITS,
    }
    if request.n > 1:
        fields["n"] = request.n
    fields |= config.extra_body
    present = {name: value for name, value in fields.items() if value is not None}
    return {"model": config.model, **prompt, **present}


def max_usage(body: Mapping[str, Any], request: EndpointRequest) -> Usage:
    """Return the most tokens that a request can take. A token has at least one byte."""
    limits = (body.get("max_tokens"), body.get("max_completion_tokens"))
    longest = max([limit for limit in limits if isinstance(limit, int)] or [request.max_tokens])
    prompt_tokens = len(request.prompt.encode()) + _TEMPLATE_TOKENS
    return Usage(prompt_tokens, request.n * longest, estimated=True)
