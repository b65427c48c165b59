"""Requests to an endpoint and their errors, as plain values without HTTP."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.core import prompts
from sirt_ray.endpoint.replies import Api, Usage
from sirt_ray.errors import ConfigError
from sirt_ray.types import PromptKind, Question

Json = dict[str, Any]

_EVERY_REQUEST = ("model", "messages", "prompt")
_SEED_BITS = 31
"""Some servers accept no larger seeds."""
_LENGTH_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_new_tokens", "max_tokens")
"""Fields that limit the answer's length at various endpoints."""
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


class UnansweredError(Exception):
    """A request was given up. `refused`: the endpoint will never answer it; else all its attempts
    failed. `retries` and `cost` are what it took nevertheless."""

    def __init__(self, message: str, *, refused: bool, retries: int, cost: float) -> None:
        super().__init__(message)
        self.refused, self.retries, self.cost = refused, retries, cost


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


def settings_to_change(reason: str, body: Json, config: EndpointConfig) -> str:
    """Return which settings keep the fields of `body` that the endpoint's `reason` names out of a
    request, as a sentence; empty if it names none."""
    named = [field for field in body if field not in _EVERY_REQUEST and _names(reason, field)]
    added = [field for field in named if field in config.extra_body]
    sent = [field for field in named if field not in config.extra_body]
    advice = ""
    if added:
        advice += f" Correct {', '.join(added)} in teacher.endpoint.extra_body."
    if sent:
        changed = config.extra_body | dict.fromkeys(sent)
        if "max_tokens" in sent and not any(body.get(name) for name in _LENGTH_LIMITS[:-1]):
            other = next((name for name in _LENGTH_LIMITS[:-1] if _names(reason, name)), None)
            changed[other or _LENGTH_LIMITS[0]] = body["max_tokens"]
        line = yaml.safe_dump(changed, default_flow_style=True, sort_keys=False, width=10_000)
        advice += (
            f" If the endpoint does not support {', '.join(sent)}, write under teacher.endpoint"
            f" `extra_body: {line.strip()}` (null removes a field from every request)"
        )
        if not {"max_tokens", "temperature", "top_p"}.isdisjoint(sent):
            advice += "; if it only refuses the value, change it under teacher.sampling"
        advice += "."
    return advice


def _names(reason: str, field: str) -> bool:
    """Return whether the text has the field as a word of its own; `\\n` is a line end."""
    return re.search(rf"(?<![\w\\]){re.escape(field)}(?!\w)", reason) is not None


def max_usage(body: Mapping[str, Any], request: EndpointRequest) -> Usage:
    """Return the most tokens that a request can take. A token has at least one byte."""
    limits = map(body.get, _LENGTH_LIMITS)
    longest = max([limit for limit in limits if isinstance(limit, int)] or [request.max_tokens])
    prompt_tokens = len(request.prompt.encode()) + _TEMPLATE_TOKENS
    return Usage(prompt_tokens, request.n * longest, estimated=True)
