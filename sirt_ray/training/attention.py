"""Attention over a packed row, for every Hugging Face model that supports attention backends.

A model whose `attn_implementation` is `PACKED` receives the row's segments as a keyword of its call
and passes them to this module; without them it attends as usual. Nothing is computed for tokens
that do not attend to each other, and no mask of the whole row is made.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sirt_ray.training.batching import Segments

PACKED = "sirt_packed"
"""The name of the attention in `transformers`."""

EAGER = "eager"
"""The attention by which an architecture defines itself, in `transformers`."""

SEGMENTS = "sirt_segments"
"""The keyword of the model's call."""

_UNDERSTOOD_TENSORS = ("position_ids",)
"""Tensors among the keywords of an attention that change nothing here: the positions are in queries
and keys already. Any other one, such as the sinks of gpt-oss (`s_aux`), is part of the function."""


@dataclass
class Calls:
    """The layers that attended by segments, as their architecture means it."""

    layers: int = 0
    windows: int = 0
    """Those of them that attend back to a window only."""


_counting: list[Calls] = []
"""The counts of the enclosing `counted` blocks, innermost last."""


def call(segments: Segments | None) -> dict[str, Any]:
    """Return the keywords of the model's call.

    With segments the mask is a placeholder: a model that is given a mask of four dimensions does
    not make its own, of the row's length squared.
    """
    if segments is None:
        return {}
    return {SEGMENTS: segments, "attention_mask": torch.zeros(1, 1, 1, 1)}


def register() -> None:
    """Register `PACKED` in `transformers`; idempotent."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(PACKED, _attend)
    AttentionMaskInterface.register(PACKED, sdpa_mask)


@contextmanager
def counted() -> Iterator[Calls]:
    """Count the layers that attend by segments inside the block. A model may drop keywords that it
    does not know, or ask for an attention that is more than this one."""
    calls = Calls()
    _counting.append(calls)
    try:
        yield calls
    finally:
        _counting.remove(calls)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return [1, T, heads, D] of queries [1, heads, T, D], keys and values [1, key heads, T, D]."""
    segments: Segments | None = kwargs.pop(SEGMENTS, None)
    if segments is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out, None
    window = kwargs.get("sliding_window")
    if _counting and _is_plain(module, kwargs):
        _counting[-1].layers += 1
        _counting[-1].windows += window is not None
    scale = kwargs.get("scaling")
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _by_kernel(query, key, value, segments, window, scale)[None], None
    return _by_segment(query, key, value, segments, window, scale).transpose(1, 2), None


def _is_plain(module: torch.nn.Module, keywords: Mapping[str, Any]) -> bool:
    """Return whether the layer asks for causal softmax attention and nothing else: no sinks, no
    soft cap, no bias."""
    tensors = [name for name, value in keywords.items() if isinstance(value, Tensor)]
    return (
        keywords.get("softcap") is None
        and all(name in _UNDERSTOOD_TENSORS for name in tensors)
        and keywords.get("is_causal", getattr(module, "is_causal", True)) is not False
    )


def _by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """Attend with one call for each segment.

    Splitting and joining once keeps the backward pass linear: each slice of a tensor by itself
    would have a gradient of the whole tensor's size.
    """
    queries, keys, values = (part.split(segments.lengths, dim=2) for part in (query, key, value))
    grouped_heads = query.shape[1] != key.shape[1]
    outs: list[Tensor] = []
    for at, before in enumerate(segments.continues):
        k, v, mask = keys[at], values[at], None
        if before is not None:
            k, v = torch.cat((keys[before], k), dim=2), torch.cat((values[before], v), dim=2)
        if before is not None or (window is not None and k.shape[2] > window):
            mask = _mask(queries[at].shape[2], k.shape[2], window, query.dtype, query.device)
        outs.append(
            F.scaled_dot_product_attention(
                queries[at],
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=grouped_heads,
            )
        )
    return torch.cat(outs, dim=2)


def _mask(
    num_queries: int, num_keys: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the additive mask [queries, keys]: the queries are at the last keys' positions, and
    attend back to `window` keys."""
    size = 1 << (num_keys - 1).bit_length()
    return _square(size, window, dtype, device)[num_keys - num_queries : num_keys, :num_keys]


@lru_cache(maxsize=4)
def _square(size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the additive mask of `size` queries and keys."""
    positions = torch.arange(size, device=device)
    back = positions[:, None] - positions
    hidden = (back < 0) if window is None else (back < 0) | (back >= window)
    return torch.zeros(size, size, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


def _by_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """Attend with FlashAttention's call for sequences of variable length.

    The keys of a completion are its prompt's, repeated, and its own. Causal attention aligns the
    last query with the last key.
    """
    from torch.nn.attention.varlen import varlen_attn

    layout = _layout(segments, query.device)
    result = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1)[layout.keys],
        value[0].transpose(0, 1)[layout.keys],
        layout.query_bounds,
        layout.key_bounds,
        layout.most_queries,
        layout.most_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(result, Tensor)
    return result


@dataclass(frozen=True, slots=True)
class _Layout:
    """A packed row in the kernel's format."""

    keys: Tensor
    """Positions in the row of the keys that each segment attends to, segment after segment."""
    query_bounds: Tensor
    key_bounds: Tensor
    most_queries: int
    most_keys: int


@lru_cache(maxsize=1)
def _layout(segments: Segments, device: torch.device) -> _Layout:
    """Return the layout, which is made and sent to the device once for all layers of a pass."""
    starts = list(accumulate(segments.lengths, initial=0))
    positions: list[int] = []
    key_lengths: list[int] = []
    for at, before in enumerate(segments.continues):
        seen = [] if before is None else list(range(starts[before], starts[before + 1]))
        seen += range(starts[at], starts[at + 1])
        positions += seen
        key_lengths.append(len(seen))
    return _Layout(
        keys=torch.tensor(positions, device=device),
        query_bounds=_boundaries(segments.lengths, device),
        key_bounds=_boundaries(key_lengths, device),
        most_queries=max(segments.lengths),
        most_keys=max(key_lengths),
    )


def _boundaries(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
