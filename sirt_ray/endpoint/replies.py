"""Replies of an endpoint, validated as untrusted input: bytes -> Reply.

Only the `content` (or `text`) of a choice is the model's answer. The reasoning of a reasoning model
(`reasoning_content`, `reasoning`) is paid for like any token and not used: its format, and whether
one may train on it, differ between providers.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError

from sirt_ray.types import StopReason

Api = Literal["chat", "completions"]

LARGEST_BODY_BYTES = 32 << 20
_BYTES_PER_TOKEN = 3
"""For replies without a usage. Most texts have more bytes per token, so the estimate is high and a
budget ends too early rather than too late."""
_REASON_CHARACTERS = 300
_STOP_REASONS: dict[str, StopReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
}
"""`finish_reason` of various providers -> our stop reason: ended by the model, or cut off."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False
    """Whether the numbers are estimated, because the endpoint reported none."""

    @property
    def tokens(self) -> int:
        """Tokens of prompt and completions together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Choice:
    """One completion of a reply."""

    text: str
    stop_reason: StopReason | None
    """None if the completion ended in another way and its text must not be used."""
    ended_by: str = ""
    """The endpoint's name for that other way: `content_filter`, `tool_calls`, ..."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A valid reply. The names of the fields are keys of the cache's files.

    Example::

    Reply((Choice(" 2 + 2 = 4. The answer is 4.", "stop"),), Usage(21, 14))
    """

    choices: tuple[Choice, ...]
    """At least one and at most as many as requested, in the endpoint's order."""
    use: Usage


class UnreadableReplyError(Exception):
    """A reply that is not valid. `usage` estimates what it has cost nevertheless."""

    def __init__(self, message: str, usage: Usage) -> None:
        super().__init__(message)
        self.usage = usage


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _RawChoice(BaseModel):
    index: int | None = None
    finish_reason: str | None = None
    message: _Message | None = None
    text: str | None = None


class _Body(BaseModel):
    choices: list[_RawChoice] = Field(min_length=1)
    usage: JsonValue = None


class _RawUsage(BaseModel):
    prompt_tokens: Annotated[int, Field(ge=0)]
    completion_tokens: Annotated[int, Field(ge=0)]


REPLY = TypeAdapter(Reply)
"""Reads and writes replies as JSON, strictly."""


def estimated_tokens(text: str | bytes) -> int:
    """Estimate the number of tokens of a text, on the high side."""
    size = len(text.encode(errors="replace")) if isinstance(text, str) else len(text)
    return math.ceil(size / _BYTES_PER_TOKEN)


def read_reply(body: bytes, api: Api, n: int, prompt: str) -> Reply:
    """Parse the body of a response with status 200, with at most `n` choices. Raises
    UnreadableReplyError."""
    estimate = Usage(estimated_tokens(prompt), 0, estimated=True)
    if len(body) > LARGEST_BODY_BYTES:
        raise UnreadableReplyError(
            f"a reply of {len(body) >> 20} MiB, where {LARGEST_BODY_BYTES >> 20} are the most",
            estimate,
        )
    try:
        found = _Body.model_validate_json(body)
    except ValidationError as error:
        raise UnreadableReplyError(_describe_invalid(body, error), estimate) from error
    choices = tuple(_choice(choice, api) for choice in _in_order(found.choices)[:n])
    return Reply(choices, _usage(found.usage, prompt, choices))


def _choice(choice: _RawChoice, api: Api) -> Choice:
    message = choice.message or _Message()
    text = (message.content if api == "chat" else choice.text) or ""
    if message.refusal and not text:
        return Choice("", None, "refusal")
    stop_reason = _STOP_REASONS.get(choice.finish_reason or "")
    if stop_reason is None:
        # Without a finish reason the text may be incomplete.
        return Choice("", None, choice.finish_reason or "no finish_reason")
    return Choice(text, stop_reason)


def _in_order(choices: Sequence[_RawChoice]) -> list[_RawChoice]:
    """Sort choices by index if all have one and they differ; else keep their order."""
    by_index = {choice.index: choice for choice in choices if choice.index is not None}
    if len(by_index) != len(choices):
        return list(choices)
    return [by_index[index] for index in sorted(by_index)]


def _usage(usage: JsonValue, prompt: str, choices: Sequence[Choice]) -> Usage:
    try:
        counted = _RawUsage.model_validate(usage)
    except ValidationError:
        completion_tokens = sum(estimated_tokens(choice.text) for choice in choices)
        return Usage(estimated_tokens(prompt), completion_tokens, estimated=True)
    return Usage(counted.prompt_tokens, counted.completion_tokens)


def _describe_invalid(body: bytes, error: ValidationError) -> str:
    """Describe a body that is not a reply. Some providers send an error with status 200."""
    try:
        reason = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        shown = body[:_REASON_CHARACTERS].decode(errors="replace")
        return f"a reply that cannot be read ({where or 'body'}: {first['msg']}): {shown!r}"
    return f"an error instead of a reply: {str(reason)[:_REASON_CHARACTERS]}"
