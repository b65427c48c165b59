"""Instruction tuning: what one micro-batch of demonstrations costs."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from sirt_ray.core.encoding import TrainingExample
from sirt_ray.core.losses import Metrics, sft_loss
from sirt_ray.training.health import Line
from sirt_ray.training.scoring import Score


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
