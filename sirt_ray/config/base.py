"""What every section of a job file is made of."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `over` on top of those of `under`, section by section."""
    result = dict(under)
    for name, value in over.items():
        below = result.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merged(cast(Mapping[str, Any], below), cast(Mapping[str, Any], value))
        result[name] = value
    return result


def leaves_of(value: Mapping[str, Any], separator: str = ".") -> Iterator[tuple[str, Any]]:
    """What is no section by its path: `refine.beta`; a section without settings too."""
    for name, below in value.items():
        if isinstance(below, Mapping) and below:
            within = leaves_of(cast(Mapping[str, Any], below), separator)
            yield from ((f"{name}{separator}{rest}", leaf) for rest, leaf in within)
        else:
            yield name, below


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class SamplingConfig(Section):
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_tokens: PositiveInt = 512
    """Longest completion, in tokens. One that reaches it is marked `length` and never chosen."""
