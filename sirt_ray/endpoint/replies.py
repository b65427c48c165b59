"""Replies of an endpoint, validated as untrusted input: bytes -> Reply.

Only the `content` (or `text`) of a choice is the model's answer. The reasoning of a reasoning model
(`reasoning_content`, `reasoning`, parts of type `thinking`) is paid for like any token and not
used: its format, and whether one may train on it, differ between providers.

What a `finish_reason` means is in `finish_reasons.py`. A reply is final, and may be cached, only if
the meaning of each of its choices' ends is known and none was broken off.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError

from sirt_ray.endpoint.finish_reasons import meaning_of
from sirt_ray.types import StopReason

Api = Literal["chat", "completions"]

LARGEST_BODY_BYTES = 32 << 20
_BYTES_PER_TOKEN = 3
"""For replies without a usage. Most texts have more bytes per token, so the estimate is high and a
budget ends too early rather than too late."""
_REASON_CHARACTERS = 300
_TEXT_PARTS = ("text", "output_text")
_THOUGHT_PARTS = ("thinking", "redacted_thinking", "reasoning", "thought")


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

    @property
    def is_final(self) -> bool:
        """Whether the meaning of each choice's end is known and none was broken off. Earlier
        versions cached other replies, too."""
        ended = [choice.ended_by for choice in self.choices if choice.stop_reason is None]
        return bool(self.choices) and all(meaning_of(name) == "withheld" for name in ended)


class UnusableReplyError(Exception):
    """A reply of which nothing may be used or cached. `usage`: what it has cost nevertheless.
    `retryable`: whether the same request may get a better one."""

    def __init__(self, message: str, usage: Usage, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.usage = usage
        self.retryable = retryable


class _Part(BaseModel):
    type: str = "text"
    text: str | None = None


class _Message(BaseModel):
    content: str | list[_Part | str] | None = None
    refusal: str | None = None


class _RawChoice(BaseModel):
    index: int | None = None
    finish_reason: str | None = None
    message: _Message | None = None
    text: str | None = None
    error: JsonValue = None


class _Body(BaseModel):
    choices: list[_RawChoice] = Field(min_length=1)
    usage: JsonValue = None
    error: JsonValue = None


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
    UnusableReplyError."""
    estimate = Usage(estimated_tokens(prompt), 0, estimated=True)
    if len(body) > LARGEST_BODY_BYTES:
        raise UnusableReplyError(
            f"a reply of {len(body) >> 20} MiB, where {LARGEST_BODY_BYTES >> 20} are the most",
            estimate,
        )
    try:
        found = _Body.model_validate_json(body)
    except ValidationError as error:
        raise UnusableReplyError(_describe_invalid(body, error), estimate) from error
    raw = _in_order(found.choices)[:n]
    usage = _usage(found.usage, prompt, [_content(choice, api)[0] for choice in raw])
    # A gateway that has lost its provider adds the error to whatever it has.
    reason = found.error or next((choice.error for choice in raw if choice.error), None)
    if reason:
        raise UnusableReplyError(_describe_error(reason), usage)
    return Reply(tuple(_choice(choice, api, usage) for choice in raw), usage)


def _choice(choice: _RawChoice, api: Api, usage: Usage) -> Choice:
    """Return the choice. Raises UnusableReplyError if its text may be incomplete."""
    text, other_part = _content(choice, api)
    ended_by, source = choice.finish_reason or "", "finish_reason"
    if meaning_of(ended_by) in ("stop", "length"):
        if other_part is not None:
            ended_by, source = other_part, "a part of type"
        elif not text and choice.message is not None and choice.message.refusal:
            ended_by = "refusal"
    match meaning_of(ended_by):
        case "stop" | "length" as stop_reason:
            return Choice(text, stop_reason)
        case "withheld":
            return Choice("", None, ended_by)
        case "broken_off":
            reason = f"{source} '{ended_by}'" if ended_by else "no finish_reason"
            raise UnusableReplyError(f"a completion that was broken off ({reason})", usage)
        case None:
            raise UnusableReplyError(
                f"a completion with {source} '{ended_by}', which is not known, so whether its text"
                " is complete is not known either",
                usage,
                retryable=False,
            )


def _content(choice: _RawChoice, api: Api) -> tuple[str, str | None]:
    """Return the text, and the type of the first part that is neither text nor reasoning."""
    content = choice.text if api == "completions" else choice.message and choice.message.content
    if not isinstance(content, list):
        return content or "", None
    parts = [_Part(text=part) if isinstance(part, str) else part for part in content]
    others = [part.type for part in parts if part.type not in (*_TEXT_PARTS, *_THOUGHT_PARTS)]
    texts = [part.text or "" for part in parts if part.type in _TEXT_PARTS]
    return "".join(texts), others[0] if others else None


def _in_order(choices: Sequence[_RawChoice]) -> list[_RawChoice]:
    """Sort choices by index if all have one and they differ; else keep their order."""
    by_index = {choice.index: choice for choice in choices if choice.index is not None}
    if len(by_index) != len(choices):
        return list(choices)
    return [by_index[index] for index in sorted(by_index)]


def _usage(usage: JsonValue, prompt: str, texts: Sequence[str]) -> Usage:
    try:
        counted = _RawUsage.model_validate(usage)
    except ValidationError:
        completion_tokens = sum(map(estimated_tokens, texts))
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
    return _describe_error(reason)


def _describe_error(reason: object) -> str:
    return f"an error instead of a reply: {str(reason)[:_REASON_CHARACTERS]}"
