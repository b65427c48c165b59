"""What an endpoint sends back, read with distrust: bytes -> Reply.

Only the `content` (or `text`) of a choice is what the model answered. What a reasoning model has
thought before (`reasoning_content`, `reasoning`) is paid for like any token and not used: how it is
written, and whether it may be learned from, differs from provider to provider.
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
"""For replies that do not say what they took: fewer than in most texts, so that a budget is rather
spent too early than overrun."""
_REASON_CHARACTERS = 300
_ENDS: dict[str, StopReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
}
"""How providers say that the model ended its answer, or was cut off."""


@dataclass(frozen=True, slots=True)
class Use:
    """The tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False
    """The endpoint did not say it."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Written:
    """One choice of a reply."""

    text: str
    stop_reason: StopReason | None
    """None: it ended in another way, and there is no text that may be used."""
    ended_by: str = ""
    """That other way, as the endpoint calls it: `content_filter`, `tool_calls`, ..."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Example::

    Reply((Written(" 2 + 2 = 4. The answer is 4.", "stop"),), Use(21, 14))
    """

    choices: tuple[Written, ...]
    """At least one, at most as many as were asked for, in their order."""
    use: Use


class UnreadableReplyError(Exception):
    """A reply that is none. `use` is what it may have cost all the same."""

    def __init__(self, message: str, use: Use) -> None:
        super().__init__(message)
        self.use = use


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    index: int | None = None
    finish_reason: str | None = None
    message: _Message | None = None
    text: str | None = None


class _Body(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: JsonValue = None


class _Usage(BaseModel):
    prompt_tokens: Annotated[int, Field(ge=0)]
    completion_tokens: Annotated[int, Field(ge=0)]


REPLY = TypeAdapter(Reply)
"""Reads and writes replies as JSON, strictly."""


def estimated_tokens(text: str | bytes) -> int:
    """What a text may have in tokens, where nobody counted them."""
    size = len(text.encode(errors="replace")) if isinstance(text, str) else len(text)
    return math.ceil(size / _BYTES_PER_TOKEN)


def read_reply(body: bytes, api: Api, n: int, prompt: str) -> Reply:
    """The reply in the body of a response with status 200. Raises UnreadableReplyError."""
    guess = Use(estimated_tokens(prompt), 0, estimated=True)
    if len(body) > LARGEST_BODY_BYTES:
        raise UnreadableReplyError(
            f"a reply of {len(body) >> 20} MiB, where {LARGEST_BODY_BYTES >> 20} are the most",
            guess,
        )
    try:
        found = _Body.model_validate_json(body)
    except ValidationError as error:
        raise UnreadableReplyError(_what_it_is(body, error), guess) from error
    choices = tuple(_written(choice, api) for choice in _in_order(found.choices)[:n])
    return Reply(choices, _use(found.usage, prompt, choices))


def _written(choice: _Choice, api: Api) -> Written:
    message = choice.message or _Message()
    text = (message.content if api == "chat" else choice.text) or ""
    if message.refusal and not text:
        return Written("", None, "refusal")
    stop_reason = _ENDS.get(choice.finish_reason or "")
    if stop_reason is None:
        # Without a finish reason nobody knows whether the text is whole.
        return Written("", None, choice.finish_reason or "no finish_reason")
    return Written(text, stop_reason)


def _in_order(choices: Sequence[_Choice]) -> list[_Choice]:
    """By their indices where those make sense, else as they came."""
    by_index = {choice.index: choice for choice in choices if choice.index is not None}
    if len(by_index) != len(choices):
        return list(choices)
    return [by_index[index] for index in sorted(by_index)]


def _use(usage: JsonValue, prompt: str, choices: Sequence[Written]) -> Use:
    try:
        counted = _Usage.model_validate(usage)
    except ValidationError:
        written = sum(estimated_tokens(choice.text) for choice in choices)
        return Use(estimated_tokens(prompt), written, estimated=True)
    return Use(counted.prompt_tokens, counted.completion_tokens)


def _what_it_is(body: bytes, error: ValidationError) -> str:
    """In words: some providers send an error with status 200."""
    try:
        told = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        shown = body[:_REASON_CHARACTERS].decode(errors="replace")
        return f"a reply that cannot be read ({where or 'body'}: {first['msg']}): {shown!r}"
    return f"an error instead of a reply: {str(told)[:_REASON_CHARACTERS]}"
