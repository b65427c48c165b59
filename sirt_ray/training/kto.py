"""Self-refinement without pairs: what one micro-batch of judged completions costs (KTO).

Each distinct chosen completion is a desirable example and each distinct rejected one an undesirable
example. How far the policy as a whole has moved from the reference is estimated, as in the paper,
by completions y' that were written to other questions. The paper (Ethayarajh et al. 2024, section
4.2) shifts the completions within a micro-batch; here y' comes from the next question of the data,
so that it is known before the training and the reference is asked for it once, and the mean is over
the whole optimizer batch of all workers, so that it depends neither on their number nor on the
micro-batches. It costs one forward pass over the mismatched completions a step.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sirt_ray.config.training import RefineConfig
from sirt_ray.core.encoding import TrainingExample
from sirt_ray.core.losses import KtoBatch, KtoSettings, Metrics, kto_divergence, kto_loss
from sirt_ray.errors import StageError
from sirt_ray.training.health import Line
from sirt_ray.training.objectives import MISFIT, tolerance
from sirt_ray.training.scoring import Score


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
