"""The base class of every section of a job file, and settings that several sections share."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Limit = Annotated[PositiveFloat, Field(allow_inf_nan=True)]
"""A positive number; `.inf` is no limit."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
"""A share, 0 to 1."""


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `over` on top of those of `under`, section by section."""
    result = dict(under)
    for name, value in over.items():
        below = result.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merged(cast(Mapping[str, Any], below), cast(Mapping[str, Any], value))
        result[name] = value
    return result


def leaves_of(value: Mapping[str, Any], separator: str = ".") -> Iterator[tuple[str, Any]]:
    """Yield the settings by their paths, as in `refine.beta`, and sections without settings."""
    for name, below in value.items():
        if isinstance(below, Mapping) and below:
            within = leaves_of(cast(Mapping[str, Any], below), separator)
            yield from ((f"{name}{separator}{rest}", leaf) for rest, leaf in within)
        else:
            yield name, below


class Section(BaseModel):
    """A section of a job file: frozen, without unknown keys, and with finite numbers only."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class SamplingConfig(Section):
    """How completions are sampled."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_tokens: PositiveInt = 512
    """Longest completion, in tokens. One that reaches it is marked `length` and never chosen."""
