"""Token sequences -> the log-probabilities of their completions: the one forward pass.

Tuning, refinement, validation and the reference all go through it, so that a student and its
reference are computed by the same kernels. B sequences, T tokens of the longest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sirt_ray.core.encoding import TokenSequence
from sirt_ray.core.losses import sequence_logps

Model = Callable[..., Any]
"""A causal language model: (input_ids=[B, T], ...) -> an object with `.logits` [B, T, V]."""

EMPTY = (TokenSequence((0,), (0,)),)
"""What a worker without examples runs through the model, to be multiplied by 0."""


@dataclass(frozen=True, slots=True)
class Padded:
    """Sequences side by side, padded on the right."""

    input_ids: Tensor
    """[B, T]; the padding's id is 0 and never looked at."""
    completion_mask: Tensor
    """[B, T], true on completion tokens."""


def pad(sequences: Sequence[TokenSequence], device: torch.device) -> Padded:
    width = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        start, end = len(sequence.prompt_ids), len(sequence)
        ids[row, :end] = torch.tensor(sequence.prompt_ids + sequence.completion_ids)
        mask[row, start:end] = True
    return Padded(ids.to(device), mask.to(device))


def completion_logps(
    model: Model, sequences: Sequence[TokenSequence], device: torch.device
) -> Tensor:
    """log pi(completion | prompt) of each sequence, [B], float32.

    No attention mask is passed: padding stands on the right, where causal attention never looks
    from a real token.
    """
    padded = pad(sequences, device)
    logits = model(input_ids=padded.input_ids, use_cache=False).logits
    return sequence_logps(logits, padded.input_ids, padded.completion_mask)
