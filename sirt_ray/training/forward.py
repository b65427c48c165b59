"""A micro-batch -> the log-probability of each distinct completion: the one forward pass.

Tuning, refinement, validation and the reference all go through it, so that a student and its
reference are computed by the same kernels. The model's head is
computed only at the positions that predict a completion's token, a chunk at a time.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sirt_ray.training import attention
from sirt_ray.training.batching import MicroBatch
from sirt_ray.training.model import Model

_CHUNK_BYTES = 128 * 2**20
"""Bytes of float32 logits that the head computes at once. If all logits fit in one chunk, they are
kept for the backward pass; else the backward pass computes each chunk's again."""


@dataclass(frozen=True, slots=True)
class ModelCapabilities:
    """What a model supports: see `capabilities.probe`."""

    packed: bool
    """Its attention supports the segments of a packed row."""
    separate_head: bool
    """Its logits are its head's output and nothing more, so the head can be called by itself."""
    attention: "AttentionRecord | None" = field(default=None, compare=False)
    """How the attention was chosen; None: not probed."""


@dataclass(frozen=True, slots=True)
class AttentionRecord:
    """The attention that a model trains with, by its distance from the model's own eager attention,
    in nats a token."""

    used: str
    """By its name in `transformers`."""
    difference: float
    packed_difference: float | None
    """That of packed rows; None: the model cannot compute them."""
    tolerance: float
    """The most by which an attention may differ."""


class CompletionLogps(torch.nn.Module):
    """Micro-batch -> log pi(completion | prompt) in nats, [num_completions], float32 at least."""

    def __init__(self, model: Model, capabilities: ModelCapabilities) -> None:
        super().__init__()
        self.model = model
        self.capabilities = capabilities

    def forward(self, batch: MicroBatch) -> Tensor:
        logps = self.token_logps(batch)
        sums = torch.zeros(batch.num_completions, dtype=logps.dtype, device=logps.device)
        return sums.index_add(0, batch.completion, logps)

    def token_logps(self, batch: MicroBatch) -> Tensor:
        """Return log pi(token | everything before it) of the completions' tokens, [N]."""
        call: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "use_cache": False,
            **attention.call(batch.segments),
        }
        if not self.capabilities.separate_head:
            logits = self.model(**call).logits
            return _logps(_at_positions(logits, batch.predicts), batch.targets)
        inner = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        hidden = inner.get_decoder()(**call).last_hidden_state
        at_targets = _at_positions(hidden, batch.predicts)
        return _head_logps(inner.get_output_embeddings(), at_targets, batch.targets)


def _at_positions(values: Tensor, positions: Tensor) -> Tensor:
    """Select the values [rows, width, D] at positions [N] of the flattened rows: [N, D].

    A prompt's last position is selected once for each completion. Indexing by brackets would sum
    the gradients of such a position in the order of the CPU's threads, so that the same training
    run twice would end in other bits.
    """
    return values.flatten(0, 1).index_select(0, positions)


def _head_logps(head: torch.nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probabilities of the targets by the head, chunk by chunk, [N]."""
    vocabulary = head.weight.shape[0] if head.weight.ndim == 2 else head.out_features
    chunk = max(1, _CHUNK_BYTES // (4 * vocabulary))
    if len(targets) <= chunk:
        return _logps(head(hidden), targets)

    def part(hidden: Tensor, targets: Tensor) -> Tensor:
        return _logps(head(hidden), targets)

    return torch.cat(
        [
            checkpoint(part, *pieces, use_reentrant=False)
            for pieces in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
    )


def _logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax of logits [N, V] at the targets [N], in float32 or better, [N]."""
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return -F.cross_entropy(logits, targets, reduction="none")
