"""What an endpoint is asked, and what can become of that. Plain values: no HTTP here."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.core import prompts
from sirt_ray.endpoint.replies import Api, Use
from sirt_ray.errors import ConfigError
from sirt_ray.types import PromptKind, Question

Json = dict[str, Any]

_SEED_BITS = 31
"""Some servers take no larger ones."""
_TEMPLATE_TOKENS = 64
"""What a chat template may put around a message."""


@dataclass(frozen=True, slots=True)
class EndpointRequest:
    """`n` completions of one prompt, of which the first is number `first` of its question."""

    prompt: str
    n: int
    first: int
    seed: int
    temperature: float
    top_p: float
    max_tokens: int


class RefusedByEndpointError(Exception):
    """The endpoint will never answer this request; the message says why."""


class MayPassError(Exception):
    """An attempt failed, and another one may not. `wait_seconds`: what the endpoint asks for."""

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


def api_key(config: EndpointConfig) -> str | None:
    """The key from this machine's environment; None where the endpoint wants none. Raises
    ConfigError where the variable is not set."""
    name = config.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"teacher.endpoint.api_key_env: the environment variable {name} is not set on"
            f" {socket.gethostname()}, so {config.url} would refuse every request. Set it there"
            " before Ray is started, name another variable, or give `api_key_env: null` for a"
            " server without keys"
        )
    return key


def prompt_of(api: Api, question: Question, kind: PromptKind) -> str:
    """The text that asks a question: a user's message, or a prompt to be continued."""
    form = prompts.chat_message if api == "chat" else prompts.render
    return form(question, kind)


def request_body(config: EndpointConfig, ask: EndpointRequest) -> Json:
    """What is sent. `extra_body` wins over the sampling, and its nulls take a field out."""
    chat = config.api == "chat"
    subject: Json = (
        {"messages": [{"role": "user", "content": ask.prompt}]} if chat else {"prompt": ask.prompt}
    )
    fields: Json = {
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "seed": (ask.seed + ask.first) % 2**_SEED_BITS,
    }
    if ask.n > 1:
        fields["n"] = ask.n
    fields |= config.extra_body
    told = {name: value for name, value in fields.items() if value is not None}
    return {"model": config.model, **subject, **told}


def longest_use(body: Mapping[str, Any], ask: EndpointRequest) -> Use:
    """The most that a request can take. A token is a byte at least."""
    bounds = (body.get("max_tokens"), body.get("max_completion_tokens"))
    longest = max([bound for bound in bounds if isinstance(bound, int)] or [ask.max_tokens])
    return Use(len(ask.prompt.encode()) + _TEMPLATE_TOKENS, ask.n * longest, estimated=True)
