"""What every training of a job file has: optimizer, length, LoRA, and which weights are taken.

Defaults are the paper's where the paper says; a default has its home here and nowhere else.
"""

from typing import Annotated, Literal

from pydantic import Field

from sirt_ray.config.base import Count, Fraction, NonNegative, Positive, Section


class LoraConfig(Section):
    rank: Count = 8
    alpha: Positive = 16
    dropout: Fraction = 0.0
    """Must be 0 for self-refinement: the reference and the policy have to agree at step 0."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    quantize: Literal["nf4"] | None = None
    """`nf4`: QLoRA (Dettmers et al. 2023, section 3), the base in 4 bits with double quantisation
    while it is trained, which needs GPUs and bitsandbytes. The student is merged into the base as
    it was; the adapter lies beside it."""


class TrainingConfig(Section):
    """What instruction tuning and self-refinement have in common."""

    learning_rate: Positive
    batch_size: Count
    """Sequences (tuning) or pairs (refining; completions with `rft` and `kto`) for one optimizer
    step, over all workers."""
    epochs: Positive
    max_steps: Count | None = None
    """Stop after so many optimizer steps although epochs are left."""
    warmup_ratio: Fraction = 0.0
    warmup_steps: NonNegative = 0
    """The larger of the two counts."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    adam_betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    max_grad_norm: Positive = 1.0
    max_length: Count = 1024
    """Longest prompt plus completion, in tokens; a longer one is left out and counted."""
    lora: LoraConfig | None = None
    """None: full fine-tuning."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the questions held out from training, with all that was made of them; 0: no
    validation."""
    evaluate_every_steps: Count = 50
    """Validation every so many steps, and after the last."""
    choose: Literal["best", "accuracy", "last"] = "best"
    """Which weights become the student. `best`: those with the lowest validation loss (the paper).
    `accuracy`: those that prefer the chosen completion in the most held-out pairs, of equal ones
    the lower loss (refinement only). `last`: the last step's."""
    patience: Count | None = None
    """Stop after so many evaluations in a row without better weights, by `choose`; None: never."""

    def choice_problems(self) -> list[str]:
        problems: list[str] = []
        if self.patience is not None and self.choose == "last":
            problems.append(
                "patience ends a training that no longer improves, but choose 'last' would keep the"
                " weights from after the best. Set choose to 'best', or take patience away"
            )
        unjudged = [
            name
            for name, asked in (
                ("patience", self.patience is not None),
                ("choose 'accuracy'", self.choose == "accuracy"),
            )
            if asked and self.validation_fraction == 0
        ]
        if unjudged:
            problems.append(
                f"{' and '.join(unjudged)} compares evaluations, but validation_fraction is 0, so"
                " that there are none. Set it above 0 (0.05 is usual)"
            )
        return problems

    @property
    def quantizes(self) -> bool:
        return self.lora is not None and self.lora.quantize is not None
