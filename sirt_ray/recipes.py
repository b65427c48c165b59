"""The `tune` and `refine` of a job file: how a student is trained.

Defaults are the paper's where the paper says; a default has its home here and nowhere else.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sirt_ray.settings import Count, Fraction, NonNegative, Positive, SamplingConfig, Section
from sirt_ray.types import PromptKind


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

    def _choice_problems(self) -> list[str]:
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


class TuneConfig(TrainingConfig):
    """Stage 2: instruction tuning on demonstrations (paper: 4 epochs, 2e-5, cosine, 0.03)."""

    learning_rate: Positive = 2e-5
    batch_size: Count = 32
    epochs: Positive = 4
    warmup_ratio: Fraction = 0.03
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    prompt: PromptKind = "cot"
    """The prompt that demonstrations are learned after."""
    max_demonstrations: Count | None = None
    """Demonstrations per benchmark, the first in question order; None: all."""

    @model_validator(mode="after")
    def _consistent(self) -> "TuneConfig":
        problems = self._choice_problems()
        if self.choose == "accuracy":
            problems.append(
                "choose 'accuracy' compares preferences between completions, and tuning has no"
                " pairs. Set choose to 'best' or 'last'"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


class PairsConfig(Section):
    """How graded completions become preference pairs."""

    rule: Literal["dpo_cot", "correctness", "both"] = "dpo_cot"
    """`dpo_cot` (the paper's): chosen = own right CoT-Answer, rejected = own Answer to the plain
    prompt. `correctness`: chosen = right, rejected = wrong CoT-Answer. `both`: their union."""
    plain_rejected: Literal["any", "wrong"] = "any"
    """Which Answers `dpo_cot` may reject. `any` contrasts style (the literal reading of the paper),
    `wrong` contrasts correctness as well."""
    unparseable_rejected: bool = False
    """Whether a CoT-Answer without a readable final answer may be rejected as if it were wrong."""
    max_per_question: Count = 1


class RefineConfig(TrainingConfig):
    """Stage 3: rounds of sampling, pairing and DPO (paper: one pass, 1e-6, batch 128, <= 1000
    steps)."""

    rounds: NonNegative = 1
    num_cot: Count = 4
    """CoT-Answers per question."""
    num_plain: NonNegative = 1
    """Answers to the plain prompt per question; only `dpo_cot` and `both` need them."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.7)
    max_questions: Count | None = None
    """Questions per benchmark and round; None: every demonstrated question."""
    ground_truth: Literal["teacher", "gold"] = "teacher"
    """What a right answer is: the teacher's final answer (the paper) or the benchmark's."""
    pairs: PairsConfig = PairsConfig()
    loss: Literal["sigmoid", "ipo", "robust", "simpo", "orpo", "kto", "rft"] = "sigmoid"
    """`sigmoid`: DPO (the paper), cDPO with `label_smoothing`; `ipo`, `robust` (DPO that expects
    pairs the wrong way round), `simpo`, `orpo`: see core/losses.py. `kto`: no pairs, each distinct
    chosen completion is desirable and each distinct rejected one undesirable. `rft`: no preference,
    the NLL of the chosen completions, each once: what all others have to beat."""
    reference: Literal["previous", "initial"] = "previous"
    """The student that the policy is held to: `previous`, which the round starts from (the paper),
    or `initial`, the instruction-tuned one in every round (sigmoid, ipo, robust, kto)."""
    beta: Positive = 0.1
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of the pairs taken to be the wrong way round (sigmoid, robust, simpo)."""
    length_normalised: bool = False
    """Compare log-probabilities a token in place of a completion (sigmoid, ipo)."""
    simpo_margin: Annotated[float, Field(ge=0.0)] = 0.0
    """By how much more than 0 SimPO wants the chosen completion ahead (its gamma)."""
    nll_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the chosen completion's length-normalised NLL added to the loss (Iterative RPO)."""
    desirable_weight: Positive = 1.0
    undesirable_weight: Positive = 1.0
    """KTO's weights (its lambdas) of the two kinds of examples. Where one kind is rarer, its weight
    times its number should be about that of the other."""
    learning_rate: Positive = 1e-6
    batch_size: Count = 128
    epochs: Positive = 1
    max_steps: Count | None = 1000
    warmup_steps: NonNegative = 100
    roll_back: bool = True
    """Undo a round whose held-out accuracy falls by more than `roll_back_stderrs`."""
    roll_back_stderrs: Positive = 2.0
    """In standard errors of the difference between the two students."""

    @model_validator(mode="after")
    def _consistent(self) -> "RefineConfig":
        problems: list[str] = []
        if self.pairs.rule != "correctness" and self.num_plain == 0:
            problems.append(
                f"pairs.rule '{self.pairs.rule}' rejects Answers to the plain prompt, but num_plain"
                " is 0. Set num_plain to 1 or more, or pairs.rule to 'correctness'"
            )
        if self.pairs.rule == "correctness" and self.num_cot < 2:
            problems.append(
                "pairs.rule 'correctness' needs a right and a wrong CoT-Answer to one question,"
                " but num_cot is 1. Set num_cot to 2 or more (4 to 8 are usual)"
            )
        if self.sampling.temperature == 0 and self.num_cot > 1:
            problems.append(
                "sampling.temperature is 0, so all num_cot CoT-Answers of a question would be the"
                " same. Raise the temperature (0.7 to 1.0 are usual) or set num_cot to 1"
            )
        if self.lora is not None and self.lora.dropout > 0:
            problems.append(
                "lora.dropout is above 0: the policy would differ from its reference before the"
                " first step. Set it to 0"
            )
        if self.choose == "accuracy" and self.loss == "rft":
            problems.append(
                "choose 'accuracy' compares preferences, but loss 'rft' has none. Set choose to"
                " 'best' or 'last'"
            )
        problems += self._choice_problems() + self._unused()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _unused(self) -> list[str]:
        """Settings that the chosen loss would not look at."""
        heeded = {
            "label_smoothing": ("sigmoid", "robust", "simpo"),
            "length_normalised": ("sigmoid", "ipo"),
            "simpo_margin": ("simpo",),
            "nll_weight": ("sigmoid", "ipo", "robust", "simpo"),
            "reference": ("sigmoid", "ipo", "robust", "kto"),
            "desirable_weight": ("kto",),
            "undesirable_weight": ("kto",),
        }
        fields = type(self).model_fields
        return [
            f"{name} is set, but loss '{self.loss}' does not heed it. Take it away, or choose one"
            f" of {', '.join(losses)}"
            for name, losses in heeded.items()
            if getattr(self, name) != fields[name].default and self.loss not in losses
        ]
