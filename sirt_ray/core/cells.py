"""Cells of users' rows that are read as text: what is a text, and what is refused.

Nothing is turned into text that its author did not write as one: a list, a record or a missing
value is refused, with the name of its column.
"""

import datetime
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from sirt_ray.errors import DataError

Role = Literal["user", "assistant"]

_SCALARS = (str, numbers.Number, datetime.date, datetime.time)
_SHOWN_CHARACTERS = 40
_MESSAGE_KEYS = frozenset({"role", "content"})


def shown(value: object) -> str:
    """Return the start of a value's representation, for a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def text(value: object, column: str, role: Role) -> str:
    """Return a cell that must be a text, or a chat that is one message of `role`, as it is. Raises
    DataError."""
    value = content_of_chat(value, column, role)
    if not isinstance(value, str):
        raise DataError(f"{column!r} is {shown(value)} and not text")
    return encodable(value, column)


def scalar(value: object, column: str) -> str:
    """Return a text, a number, a truth value or a date as text, without space around it. Raises
    DataError for what is missing or anything else."""
    if is_missing(value):
        raise DataError(f"{column!r} is empty")
    if not is_scalar(value):
        raise DataError(f"{column!r} is {shown(value)} and neither text nor a number")
    written = encodable(str(value), column).strip()
    if not written:
        raise DataError(f"{column!r} is empty")
    return written


def is_missing(value: object) -> bool:
    """Return whether a cell is null, or NaN, as pandas writes it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_scalar(value: object) -> bool:
    """Return whether a value is a text, a number, a truth value or a date."""
    return isinstance(value, _SCALARS) and not is_missing(value)


def encodable(written: str, column: str) -> str:
    """Return a text unchanged. Raises DataError for one that UTF-8 cannot encode."""
    try:
        written.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{column!r} has {written[error.start]!r} as character {error.start + 1}: one half of"
            " a surrogate pair, which is no character. Write the text again without it"
        ) from error
    return written


def content_of_chat(value: object, column: str, role: Role) -> object:
    """Return the content of a chat of one message of `role`; what is no chat as it is. Raises
    DataError for any other chat."""
    if not _is_chat(value):
        return value
    messages = cast("Sequence[Mapping[str, object]]", value)
    roles = [str(message["role"]) for message in messages]
    if roles != [role]:
        raise DataError(
            f"{column!r} is a chat of {', '.join(roles)}, and only one message, of the {role}, can"
            " be read as its text. Write that message's text into the column"
        )
    (message,) = messages
    more = [name for name in message if name not in _MESSAGE_KEYS and message[name] is not None]
    content = _joined(message.get("content"))
    if more or content is None:
        what = f"also has {', '.join(map(repr, more))}" if more else "has no text as its content"
        raise DataError(f"{column!r} is a message that {what}, and only its text can be read")
    return content


def _is_chat(value: object) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    messages = cast("Sequence[Any]", value)
    return all(isinstance(message, Mapping) and "role" in message for message in messages)


def _joined(content: object) -> str | None:
    """Return the text of a message's content, which may be in one part; None where it is none."""
    if isinstance(content, list) and len(cast("list[object]", content)) == 1:
        (part,) = cast("list[Any]", content)
        if isinstance(part, Mapping) and cast("Mapping[str, Any]", part).get("type") == "text":
            content = cast("Mapping[str, Any]", part).get("text")
    return content if isinstance(content, str) else None
