"""Self-refinement: what one micro-batch of preference pairs costs, and the check at step 0."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sirt_ray.config.training import RefineConfig
from sirt_ray.core.encoding import TrainingExample
from sirt_ray.core.losses import (
    KtoBatch,
    KtoSettings,
    Metrics,
    PairSettings,
    kto_divergence,
    kto_loss,
    preference_loss,
    sft_loss,
)
from sirt_ray.errors import StageError
from sirt_ray.training import metrics as health
from sirt_ray.training.metrics import Line
from sirt_ray.training.scoring import Score

# FOLDED training.sft: Instruction tuning: what one micro-batch of demonstrations costs.


class Tuning:
    """The mean negative log-likelihood of the completion tokens of an optimizer batch."""

    metrics = ("loss",)
    unit = "examples"

    def prepare(self, batch: Sequence[TrainingExample], score: Score) -> None:
        """Nothing but the denominator is the whole batch's."""

    def denominator(self, batch: Sequence[TrainingExample]) -> float:
        """Completion tokens."""
        return sum(len(s.completion_ids) for example in batch for s in example.sequences)

    def loss(
        self, logps: Tensor, examples: Sequence[TrainingExample], denominator: float
    ) -> tuple[Tensor, Metrics]:
        return sft_loss(logps, denominator)

    def check_first_step(self, metrics: Mapping[str, float]) -> None:
        """Any loss may come first."""

    def concerns(
        self, recent: Sequence[Line], examples: Sequence[TrainingExample]
    ) -> tuple[str, ...]:
        """None is known: an overfitted student is seen by its validation loss."""
        return ()


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


# FOLDED training.kto: Self-refinement without pairs: what one micro-batch of judged completions costs (KTO).
#
# Each distinct chosen completion is a desirable example and each distinct rejected one an undesirable
# example. How far the policy as a whole has moved from the reference is estimated, as in the paper,
# by completions y' that were written to other questions. The paper (Ethayarajh et al. 2024, section
# 4.2) shifts the completions within a micro-batch; here y' comes from the next question of the data,
# so that it is known before the training and the reference is asked for it once, and the mean is over
# the whole optimizer batch of all workers, so that it depends neither on their number nor on the
# micro-batches. It costs one forward pass over the mismatched completions a step.


class UnpairedRefinement:
    """The KTO loss's mean over the examples of an optimizer batch.

    `is_reference`: whether the student has the reference's weights before the first update.
    """

    metrics = (
        "loss",
        "kl",
        "margin",
        "absolute_reward",
        "accuracy",
        "chosen_reward",
        "rejected_reward",
        "desirable",
    )
    unit = "examples"

    def __init__(self, config: RefineConfig, is_reference: bool) -> None:
        self._settings = KtoSettings(
            config.beta, config.desirable_weight, config.undesirable_weight
        )
        self._tolerance = tolerance(config)
        self._is_reference = is_reference
        self._batch = KtoBatch(0.0, 0, 0)

    def prepare(self, batch: Sequence[TrainingExample], score: Score) -> None:
        """Estimate the divergence; count the two kinds of examples."""
        mismatched = [example.mismatched for example in batch if example.mismatched is not None]
        assert len(mismatched) == len(batch), "examples that were not made for KTO"
        reference_E = torch.tensor(
            [example.reference_logps[0] for example in mismatched], dtype=torch.float64
        )
        num_desirable = sum(example.desirable for example in batch)
        self._batch = KtoBatch(
            kto_divergence(score(mismatched)[:, 0], reference_E),
            num_desirable,
            len(batch) - num_desirable,
        )

    def denominator(self, batch: Sequence[TrainingExample]) -> float:
        """Examples."""
        return len(batch)

    def loss(
        self, logps: Tensor, examples: Sequence[TrainingExample], denominator: float
    ) -> tuple[Tensor, Metrics]:
        reference_E = torch.tensor([example.reference_logps[0] for example in examples])
        desirable_E = torch.tensor([example.desirable for example in examples])
        return kto_loss(
            logps[:, 0],
            reference_E.to(logps),
            desirable_E.to(logps.device),
            self._batch,
            self._settings,
        )

    def check_first_step(self, metrics: Mapping[str, float]) -> None:
        """Raises StageError where the student should be the reference, and is not, before the first
        update."""
        if not self._is_reference:
            return
        off = max(metrics["absolute_reward"], self._settings.beta * metrics["kl"])
        if off > self._tolerance:
            raise StageError(
                "Before the first update the mean |reward| is"
                f" {metrics['absolute_reward']:.2e} and the divergence from the reference"
                f" {metrics['kl']:.2e} nats; both should be 0 up to rounding"
                f" ({self._tolerance:.0e}, the divergence times beta). {MISFIT}"
            )

    def concerns(
        self, recent: Sequence[Line], examples: Sequence[TrainingExample]
    ) -> tuple[str, ...]:
        """Its rules are for pairs."""
        return ()
