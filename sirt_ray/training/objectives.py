"""What a training minimises: instruction tuning, preference losses, and KTO.

An objective sees each optimizer batch three times: `prepare` with all of it, `denominator`, and
`loss` for each part. Losses and metrics of the parts add up to the batch's (see core/losses.py).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

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
from sirt_ray.training.metrics import (
    MAX_IDENTICAL_SHARE,
    MAX_LOGP_DROP,
    Line,
    chosen_logp_drop,
    contradicted_share,
    identical_share,
    length_drifts,
    length_ratio,
)
from sirt_ray.training.scoring import Score

_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest mean |margin| and |loss - ln 2| before the first update, at beta 0.1 or below.

The policy is the reference then; what remains is rounding, because sequences are padded to another
width than in the reference's pass. A completion's log-probability is a sum of some hundred terms,
each exact to about 1e-6 in float32 and 1e-2 in bfloat16."""

MISMATCH = (
    "The reference log-probabilities do not belong to these weights. Delete the reference's folder"
    " to have them computed again"
)


class Objective(Protocol):
    """The quantity that a training minimises, and what is measured with it."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what `loss` measures; `loss` is among them."""
        ...

    @property
    def unit(self) -> str:
        """The plural name of an example, as in `<unit>_per_second`."""
        ...

    def prepare(self, batch: Sequence[TrainingExample], score: Score) -> None:
        """Compute what the losses of the parts need of the whole optimizer batch, before the first
        of them. `score` computes log-probabilities under the current policy."""
        ...

    def denominator(self, batch: Sequence[TrainingExample]) -> float:
        """Return the number by which the losses of the whole optimizer batch are divided."""
        ...

    def loss(
        self, logps: Tensor, examples: Sequence[TrainingExample], denominator: float
    ) -> tuple[Tensor, Metrics]:
        """Return a part's share of the batch's loss and metrics.

        logps [examples, sequences of an example], of whole completions, in nats.
        """
        ...

    def check_first_step(self, metrics: Mapping[str, float]) -> None:
        """Raise StageError if the metrics before the first update show a wrong reference."""
        ...

    def warnings(
        self, recent: Sequence[Line], examples: Sequence[TrainingExample]
    ) -> Sequence[str]:
        """Return the names of the warnings whose rule holds after the last of the newest lines:
        see metrics.py."""
        ...


def make_objective(config: RefineConfig, is_reference: bool) -> Objective:
    """Return the objective of `config.loss`.

    `is_reference`: whether the policy has the reference's weights before the first update.
    """
    if config.loss == "rft":
        return Tuning()
    if config.loss == "kto":
        return UnpairedRefinement(config, is_reference)
    return Refinement(config, is_reference)


class Tuning:
    """The mean negative log-likelihood of the completion tokens of an optimizer batch."""

    metrics = ("loss",)
    unit = "examples"

    def prepare(self, batch: Sequence[TrainingExample], score: Score) -> None:
        """Do nothing: only the denominator depends on the whole batch."""

    def denominator(self, batch: Sequence[TrainingExample]) -> float:
        """Return the number of completion tokens."""
        return sum(len(s.completion_ids) for example in batch for s in example.sequences)

    def loss(
        self, logps: Tensor, examples: Sequence[TrainingExample], denominator: float
    ) -> tuple[Tensor, Metrics]:
        return sft_loss(logps, denominator)

    def check_first_step(self, metrics: Mapping[str, float]) -> None:
        """Do nothing: any first loss is valid."""

    def warnings(
        self, recent: Sequence[Line], examples: Sequence[TrainingExample]
    ) -> tuple[str, ...]:
        """Return none: the validation loss shows an overfitted student."""
        return ()


class Refinement:
    """The mean preference loss over the pairs of an optimizer batch.

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
            loss=config.loss,
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            length_normalised=config.length_normalised,
            simpo_margin=config.simpo_margin,
            nll_weight=config.nll_weight,
        )
        self._tolerance = tolerance(config)
        self._dtype = config.dtype
        self._is_reference = is_reference
        self._starts_at_ln_2 = config.loss in ("sigmoid", "robust")
        self._sums = config.loss in ("sigmoid", "ipo", "robust") and not config.length_normalised

    def prepare(self, batch: Sequence[TrainingExample], score: Score) -> None:
        """Do nothing: only the denominator depends on the whole batch."""

    def denominator(self, batch: Sequence[TrainingExample]) -> float:
        """Return the number of pairs."""
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
        """Raise StageError if the student should be the reference before the first update, and is
        not."""
        if not self._is_reference:
            return
        margin = metrics["absolute_margin"]
        off = abs(metrics["preference_loss"] - math.log(2)) if self._starts_at_ln_2 else 0.0
        if margin > self._tolerance or off > self._tolerance:
            raise StageError(
                "Before the first update the mean |margin| is"
                f" {margin:.2e} and the preference loss is {off:.2e} away from ln 2; both should be"
                f" below {self._tolerance:.0e} in {self._dtype}. {MISMATCH}"
            )

    def warnings(
        self, recent: Sequence[Line], examples: Sequence[TrainingExample]
    ) -> tuple[str, ...]:
        found: list[str] = []
        # The pairs do not change: they are checked once, with the first line.
        if recent[-1]["step"] == 1:
            if self._sums and length_drifts(length_ratio(examples)):
                found.append("length_drift")
            if identical_share(examples) > MAX_IDENTICAL_SHARE:
                found.append("identical_pairs")
        if chosen_logp_drop(recent, self._settings.beta) > MAX_LOGP_DROP:
            found.append("chosen_logp_falls")
        return tuple(found)


class UnpairedRefinement:
    """The mean KTO loss over the examples of an optimizer batch: self-refinement without pairs.

    Each distinct chosen completion is a desirable example and each distinct rejected one an
    undesirable example. The divergence of the policy from the reference is estimated, as in the
    paper, by completions y' that were written to other questions. The paper (Ethayarajh et al.
    2024, section 4.2) shifts the completions within a micro-batch; here y' comes from the next
    question of the data, so that it is known before the training and the reference scores it once,
    and the mean is over the whole optimizer batch of all workers, so that it depends neither on
    their number nor on the micro-batches. It costs one forward pass over the mismatched completions
    per step.

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
        """Estimate the divergence, and count the desirable and the undesirable examples."""
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
        """Return the number of examples."""
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
        """Raise StageError if the student should be the reference before the first update, and is
        not."""
        if not self._is_reference:
            return
        off = max(metrics["absolute_reward"], self._settings.beta * metrics["kl"])
        if off > self._tolerance:
            raise StageError(
                "Before the first update the mean |reward| is"
                f" {metrics['absolute_reward']:.2e} and the divergence from the reference"
                f" {metrics['kl']:.2e} nats; both should be 0 up to rounding"
                f" ({self._tolerance:.0e}, the divergence times beta). {MISMATCH}"
            )

    def warnings(
        self, recent: Sequence[Line], examples: Sequence[TrainingExample]
    ) -> tuple[str, ...]:
        """Return whether completions contradict themselves; the other rules are about pairs."""
        first = recent[-1]["step"] == 1
        contradicted = first and contradicted_share(examples) > MAX_IDENTICAL_SHARE
        return ("identical_pairs",) if contradicted else ()


def tolerance(config: RefineConfig) -> float:
    """Return the tolerance of rewards and margins before the first update, where student and
    reference are the same."""
    return _TOLERANCE[config.dtype] * max(1.0, config.beta / 0.1)
