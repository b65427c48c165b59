"""Self-refinement: what one micro-batch of preference pairs costs, and the check at step 0."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sirt_ray.config.training import RefineConfig
from sirt_ray.core.encoding import TrainingExample
from sirt_ray.core.losses import Metrics, PairSettings, preference_loss
from sirt_ray.errors import StageError
from sirt_ray.training import health
from sirt_ray.training.health import Line
from sirt_ray.training.scoring import Score

_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest mean |margin| and |loss - ln 2| before the first update, at beta 0.1 or below.

The policy is the reference then; what remains is rounding, because sequences are padded to another
width than in the reference's pass. A completion's log-probability is a sum of some hundred terms,
each good to about 1e-6 in float32 and 1e-2 in bfloat16."""

MISFIT = (
    "The reference log-probabilities do not belong to these weights. Delete the reference's folder"
    " to have them computed again"
)


def tolerance(config: RefineConfig) -> float:
    """Of rewards and margins before the first update, where student and reference are the same."""
    return _TOLERANCE[config.dtype] * max(1.0, config.beta / 0.1)


class Refinement:
    """The preference loss's mean over the pairs of an optimizer batch.

    `is_reference`: whether the student has the reference's weights before the first update.
    """

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
        "chosen_length",
        "rejected_length",
        "kl",
    )
    unit = "pairs"

    def __init__(self, config: RefineConfig, is_reference: bool = True) -> None:
        assert config.loss != "kto" and config.loss != "rft", "no losses of pairs"
        self._settings = PairSettings(
            config.loss,
            config.beta,
            config.label_smoothing,
            config.length_normalised,
            config.simpo_margin,
            config.nll_weight,
        )
        self._tolerance = tolerance(config)
        self._dtype = config.dtype
        self._is_reference = is_reference
        self._starts_at_ln_2 = config.loss in ("sigmoid", "robust")
        self._sums = config.loss in ("sigmoid", "ipo", "robust") and not config.length_normalised

    def prepare(self, batch: Sequence[TrainingExample], score: Score) -> None:
        """Nothing but the denominator is the whole batch's."""

    def denominator(self, batch: Sequence[TrainingExample]) -> float:
        """Pairs."""
        return len(batch)

    def loss(
        self, logps: Tensor, examples: Sequence[TrainingExample], denominator: float
    ) -> tuple[Tensor, Metrics]:
        reference_P2 = torch.tensor([example.reference_logps for example in examples])
        lengths_P2 = torch.tensor(
            [[len(s.completion_ids) for s in example.sequences] for example in examples]
        )
        return preference_loss(
            logps, reference_P2.to(logps), lengths_P2.to(logps), self._settings, denominator
        )

    def check_first_step(self, metrics: Mapping[str, float]) -> None:
        """Raises StageError where the student should be the reference, and is not, before the first
        update."""
        if not self._is_reference:
            return
        margin = metrics["absolute_margin"]
        off = abs(metrics["preference_loss"] - math.log(2)) if self._starts_at_ln_2 else 0.0
        if margin > self._tolerance or off > self._tolerance:
            raise StageError(
                "Before the first update the mean |margin| is"
                f" {margin:.2e} and the preference loss is {off:.2e} away from ln 2; both should be"
                f" below {self._tolerance:.0e} in {self._dtype}. {MISFIT}"
            )

    def concerns(
        self, recent: Sequence[Line], examples: Sequence[TrainingExample]
    ) -> tuple[str, ...]:
        """The warnings of `health.py` that hold after the last of the newest lines."""
        found: list[str] = []
        # The pairs do not change: they are judged once, with the first line.
        if self._sums and recent[-1]["step"] == 1 and health.drifts(health.length_ratio(examples)):
            found.append("length_drift")
        if health.chosen_fall(recent, self._settings.beta) > health.LARGEST_FALL:
            found.append("chosen_logp_falls")
        return tuple(found)
