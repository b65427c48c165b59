"""Instruction tuning: what one micro-batch of demonstrations costs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sirt_ray.core.encoding import TrainingExample
from sirt_ray.core.losses import Metrics, sft_loss
from sirt_ray.training.forward import Model, completion_logps


class Tuning:
    """The mean negative log-likelihood of the completion tokens of an optimizer batch."""

    metrics = ("loss",)

    def denominator(self, batch: Sequence[TrainingExample]) -> float:
        """Completion tokens."""
        return sum(len(s.completion_ids) for example in batch for s in example.sequences)

    def loss(
        self,
        model: Model,
        examples: Sequence[TrainingExample],
        denominator: float,
        device: torch.device,
    ) -> tuple[Tensor, Metrics]:
        sequences = [sequence for example in examples for sequence in example.sequences]
        return sft_loss(completion_logps(model, sequences, device), denominator)

    def check_first_step(self, metrics: Mapping[str, float]) -> None:
        """Any loss may come first."""
