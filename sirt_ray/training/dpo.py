"""Self-refinement: what one micro-batch of preference pairs costs, and the check at step 0."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sirt_ray.config import RefineConfig
from sirt_ray.core.encoding import TrainingExample
from sirt_ray.core.losses import DpoSettings, Metrics, dpo_loss
from sirt_ray.errors import StageError
from sirt_ray.training.forward import Model, completion_logps

_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest mean |margin| and |loss - ln 2| before the first update, at beta 0.1 or below.

The policy is the reference then; what remains is rounding, because sequences are padded to another
width than in the reference's pass. A completion's log-probability is a sum of some hundred terms,
each good to about 1e-6 in float32 and 1e-2 in bfloat16."""


class Refinement:
    """DPO's mean over the pairs of an optimizer batch."""

    metrics = (
        "loss",
        "preference_loss",
        "margin",
        "absolute_margin",
        "accuracy",
        "chosen_reward",
        "rejected_reward",
        "chosen_logp",
        "rejected_logp",
    )

    def __init__(self, config: RefineConfig) -> None:
        self._settings = DpoSettings(config.beta, config.nll_weight)
        self._tolerance = _TOLERANCE[config.dtype] * max(1.0, config.beta / 0.1)
        self._dtype = config.dtype

    def denominator(self, batch: Sequence[TrainingExample]) -> float:
        """Pairs."""
        return len(batch)

    def loss(
        self,
        model: Model,
        examples: Sequence[TrainingExample],
        denominator: float,
        device: torch.device,
    ) -> tuple[Tensor, Metrics]:
        """One forward pass for chosen and rejected together."""
        sequences = [sequence for example in examples for sequence in example.sequences]
        logps_P2 = completion_logps(model, sequences, device).view(-1, 2)
        reference_P2 = torch.tensor([example.reference_logps for example in examples])
        lengths_P = torch.tensor([len(e.sequences[0].completion_ids) for e in examples])
        return dpo_loss(
            logps_P2, reference_P2.to(logps_P2), lengths_P.to(device), self._settings, denominator
        )

    def check_first_step(self, metrics: Mapping[str, float]) -> None:
        """Raises StageError where the student is not the reference before the first update."""
        margin = metrics["absolute_margin"]
        off = abs(metrics["preference_loss"] - math.log(2))
        if margin > self._tolerance or off > self._tolerance:
            raise StageError(
                "Before the first update the mean |margin| is"
                f" {margin:.2e} and the DPO loss is {off:.2e} away from ln 2; both should be below"
                f" {self._tolerance:.0e} in {self._dtype}. The reference log-probabilities do not"
                " belong to these weights. Delete the reference's folder to have them computed"
                " again"
            )
