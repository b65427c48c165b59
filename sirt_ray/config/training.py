"""The `tune` and `refine` of a job file: how a student is trained.

Defaults are the paper's if the paper gives one; a default is defined here and in no other file.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sirt_ray import user_code
from sirt_ray.config.base import Fraction, Limit, SamplingConfig, Section, merged
from sirt_ray.config.custom import resolved
from sirt_ray.config.renamed import both_names_problem, note_renamed, with_current_names
from sirt_ray.types import PromptKind


class LoraConfig(Section):
    """LoRA adapters (Hu et al. 2021)."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16
    dropout: Fraction = 0.0
    """Must be 0 for self-refinement: the reference and the policy have to agree at step 0."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    quantize: Literal["nf4"] | None = None
    """`nf4`: QLoRA (Dettmers et al. 2023, section 3), the base in 4 bits with double quantisation
    during training, which needs GPUs and bitsandbytes. The student is the adapter merged into the
    unquantised base; the adapter is stored next to it."""


class TrainingConfig(Section):
    """The settings that instruction tuning and self-refinement share."""

    learning_rate: PositiveFloat
    batch_size: PositiveInt
    """Sequences (tuning) or pairs (refining; completions with `rft` and `kto`) for one optimizer
    step, over all workers."""
    epochs: PositiveFloat
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, even if epochs are left."""
    warmup_ratio: Fraction = 0.0
    """Share of the optimizer steps with a rising learning rate."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps with a rising learning rate; the larger of the two is used."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0
    adam_betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    max_grad_norm: Limit = 1.0
    max_length: PositiveInt = 1024
    """Longest prompt plus completion, in tokens; a longer one is left out and counted."""
    lora: LoraConfig | None = None
    """None: full fine-tuning."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the questions held out from training, with all of their examples; 0: no
    validation."""
    evaluate_every_steps: PositiveInt = 50
    """Steps between validations; there is one after the last step, too."""
    select_by: Literal["best", "accuracy", "last"] = "best"
    """Checkpoint selection: which weights become the student. `best`: those with the lowest
    validation loss (the paper). `accuracy`: those that prefer the chosen completion in the most
    held-out pairs, and of equal ones the lower loss (refinement only). `last`: the last step's."""
    patience: PositiveInt | None = None
    """Stop early after this many evaluations in a row without better weights by `select_by`; None:
    never."""

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, value: Any) -> Any:
        """Accept the earlier names of settings, also from Python."""
        if not isinstance(value, Mapping):
            return value
        settings = cast(Mapping[str, Any], value)
        if problem := both_names_problem("tune", settings):
            raise ValueError(problem)
        current = with_current_names(settings, ("tune",))
        for old, new in zip(settings, current, strict=True):
            if old != new:
                note_renamed(cls.__name__, old, new)
        return current

    def selection_problems(self) -> list[str]:
        """Return contradictions between the settings of checkpoint selection."""
        problems: list[str] = []
        if self.patience is not None and self.select_by == "last":
            problems.append(
                "patience stops a training that no longer improves, but select_by 'last' would keep"
                " the weights from after the best. Set select_by to 'best', or take patience away"
            )
        unmeasured = [
            name
            for name, is_set in (
                ("patience", self.patience is not None),
                ("select_by 'accuracy'", self.select_by == "accuracy"),
            )
            if is_set and self.validation_fraction == 0
        ]
        if unmeasured:
            problems.append(
                f"{' and '.join(unmeasured)} compares evaluations, but validation_fraction is 0, so"
                " that there are none. Set it above 0 (0.05 is usual)"
            )
        return problems

    @property
    def quantizes(self) -> bool:
        """Whether the training is QLoRA."""
        return self.lora is not None and self.lora.quantize is not None


class TuneConfig(TrainingConfig):
    """Stage 2: instruction tuning on demonstrations (paper: 4 epochs, 2e-5, cosine, 0.03)."""

    learning_rate: PositiveFloat = 2e-5
    batch_size: PositiveInt = 32
    epochs: PositiveFloat = 4
    warmup_ratio: Fraction = 0.03
    weight_decay: NonNegativeFloat = 1e-4
    prompt: PromptKind = "cot"
    """The kind of prompt before the demonstrations."""
    max_demonstrations: PositiveInt | None = None
    """Demonstrations per benchmark, the first in question order; None: all."""
    tasks: list[str] | None = Field(default=None, min_length=1)
    """Benchmarks of `data.train` to tune on; None: all of them."""
    skip: bool = False
    """No instruction tuning: rounds start from the base (the paper's DPO without it)."""

    @model_validator(mode="after")
    def _consistent(self) -> "TuneConfig":
        problems = self.selection_problems()
        if self.select_by == "accuracy":
            problems.append(
                "select_by 'accuracy' compares preferences between completions, and tuning has no"
                " pairs. Set select_by to 'best' or 'last'"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


RULES = {
    "dpo_cot": ("dpo_cot",),
    "correctness": ("correctness",),
    "both": ("dpo_cot", "correctness"),
    "spin": ("spin",),
    "right": ("right",),
}
"""`pairs.rule` -> the rules whose pairs it uses."""


def _rule(rule: str, info: ValidationInfo) -> str:
    if rule in RULES:
        return rule
    try:
        return resolved(rule, info)
    except ValueError as error:
        raise ValueError(f"is none of {', '.join(RULES)}, and {error}") from error


class PairsConfig(Section):
    """How graded completions become preference pairs."""

    rule: Annotated[str, AfterValidator(_rule)] = "dpo_cot"
    """`dpo_cot` (the paper's): chosen = a right CoT-Answer of the student, rejected = an Answer of
    the student to the plain prompt. `correctness`: chosen = right, rejected = wrong CoT-Answer.
    `both`: their union. `spin`: chosen = the teacher's demonstration, rejected = a CoT-Answer of
    the student, right or wrong. `right`: right CoT-Answers of the student only, with nothing
    rejected (loss `rft`). `path.py:function`, relative to the job file: a custom rule
    (`core/pairs.py`)."""
    with_demonstrations: bool = False
    """Whether a question's demonstration is one of its right CoT-Answers, if the student was tuned
    on it."""
    plain_rejected: Literal["any", "wrong"] = "any"
    """Which Answers `dpo_cot` may reject. `any` contrasts style (the literal reading of the paper),
    `wrong` contrasts correctness as well."""
    unparseable_rejected: bool = False
    """Whether a CoT-Answer without a readable final answer may be rejected as if it were wrong."""
    max_per_question: PositiveInt = 1
    """Pairs per question and rule; with `right`, answers in addition to the demonstration."""

    @property
    def uses_demonstrations(self) -> bool:
        """Whether pairs are made of demonstrations."""
        return self.with_demonstrations or self.rule == "spin"

    @property
    def custom_rule(self) -> str | None:
        """The reference to a custom rule's code; None for a built-in rule."""
        return self.rule if user_code.is_reference(self.rule) else None


class RefineConfig(TrainingConfig):
    """Stage 3: rounds of sampling, pairing and DPO (paper: one pass, 1e-6, batch 128, <= 1000
    steps)."""

    rounds: NonNegativeInt = 1
    even_rounds: dict[str, JsonValue] = Field(default={})
    """Settings of this section that differ in rounds 2, 4, ..., for a method with two kinds of
    rounds."""
    tasks: list[str] | None = Field(default=None, min_length=1)
    """Benchmarks of `data.train` to refine on; None: all of them. Other benchmarks than
    `tune.tasks` are the paper's Cross Self-refine."""
    start: Literal["student", "base"] = "student"
    """The weights that a round starts from: the student's that its samples are from, or the base's
    (rft, simpo, orpo)."""
    num_cot: PositiveInt = 4
    """CoT-Answers per question."""
    num_plain: NonNegativeInt = 1
    """Answers to the plain prompt per question; only `dpo_cot` and `both` use them."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.7)
    max_questions: PositiveInt | None = None
    """Questions per benchmark and round; None: every demonstrated question."""
    ground_truth: Literal["teacher", "gold"] = "teacher"
    """The answer that is right: the teacher's final answer (the paper) or the benchmark's."""
    pairs: PairsConfig = PairsConfig()
    loss: Literal["sigmoid", "ipo", "robust", "simpo", "orpo", "kto", "rft"] = "sigmoid"
    """`sigmoid`: DPO (the paper), cDPO with `label_smoothing`; `ipo`, `robust` (DPO that expects
    swapped pairs), `simpo`, `orpo`: see core/losses.py. `kto`: no pairs, each distinct chosen
    completion is desirable and each distinct rejected one undesirable. `rft`: no preference, the
    NLL of the chosen completions, each once: the baseline of all others."""
    reference: Literal["previous", "initial"] = "previous"
    """The reference model of the policy: `previous`, the student that the round starts from (the
    paper), or `initial`, the instruction-tuned one in every round (sigmoid, ipo, robust, kto)."""
    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; of `orpo`: the weight of the odds ratio."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of the pairs assumed to be swapped (sigmoid, robust, simpo)."""
    length_normalised: bool = False
    """Compare log-probabilities per token instead of per completion (sigmoid, ipo)."""
    simpo_margin: NonNegativeFloat = 0.0
    """Target margin of the chosen completion (SimPO's gamma)."""
    nll_weight: NonNegativeFloat = 0.0
    """Weight of the chosen completion's length-normalised NLL added to the loss (Iterative RPO)."""
    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0
    """KTO's weights (its lambdas) of the two kinds of examples. Where one kind is rarer, its weight
    times its number should be about that of the other."""
    learning_rate: PositiveFloat = 1e-6
    batch_size: PositiveInt = 128
    epochs: PositiveFloat = 1
    max_steps: PositiveInt | None = 1000
    warmup_steps: NonNegativeInt = 100
    roll_back: bool = True
    """Discard a round whose held-out accuracy falls by more than `roll_back_stderrs`."""
    roll_back_stderrs: PositiveFloat = 2.0
    """Threshold of a roll-back, in standard errors of the difference between the two students."""

    @model_validator(mode="after")
    def _consistent(self) -> "RefineConfig":
        problems: list[str] = self._rule_problems()
        if self.pairs.rule in ("dpo_cot", "both") and self.num_plain == 0:
            problems.append(
                f"pairs.rule '{self.pairs.rule}' rejects Answers to the plain prompt, but num_plain"
                " is 0. Set num_plain to 1 or more, or pairs.rule to 'correctness'"
            )
        if self.pairs.rule == "correctness" and self.num_cot < 2:
            problems.append(
                "pairs.rule 'correctness' needs a right and a wrong CoT-Answer to one question,"
                " but num_cot is 1. Set num_cot to 2 or more (4 to 8 are usual)"
            )
        if self.rounds and self.sampling.temperature == 0 and self.num_cot > 1:
            problems.append(
                "sampling.temperature is 0, so all num_cot CoT-Answers of a question would be the"
                " same. Raise the temperature (0.7 to 1.0 are usual) or set num_cot to 1"
            )
        if self.lora is not None and self.lora.dropout > 0:
            problems.append(
                "lora.dropout is above 0: the policy would differ from its reference before the"
                " first step. Set it to 0"
            )
        if self.select_by == "accuracy" and self.loss == "rft":
            problems.append(
                "select_by 'accuracy' compares preferences, but loss 'rft' has none. Set select_by"
                " to 'best' or 'last'"
            )
        problems += self.selection_problems() + self._unused() + self._even_problems()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _rule_problems(self) -> list[str]:
        """Return contradictions between the pair rule, the loss and the weights to start from."""
        problems: list[str] = []
        if self.pairs.rule == "right" and self.loss != "rft":
            problems.append(
                f"pairs.rule 'right' rejects nothing, but loss '{self.loss}' compares. Set loss to"
                " 'rft', or pairs.rule to 'correctness'"
            )
        if self.pairs.rule == "spin" and self.loss == "rft":
            problems.append(
                "pairs.rule 'spin' chooses demonstrations and loss 'rft' uses chosen completions"
                " only: the student's samples would not be used. Set pairs.rule to 'right', or loss"
                " to 'sigmoid'"
            )
        if self.pairs.rule == "spin" and self.pairs.with_demonstrations:
            problems.append(
                "pairs.with_demonstrations is set, but pairs.rule 'spin' chooses demonstrations and"
                " nothing else. Remove it"
            )
        if self.start == "base" and self.loss not in ("rft", "simpo", "orpo"):
            problems.append(
                f"start 'base' trains the base anew, but loss '{self.loss}' holds the student to"
                " the one before. Set start to 'student', or loss to 'rft', 'simpo' or 'orpo'"
            )
        return problems

    @property
    def code(self) -> list[str]:
        """The references to code that the rounds execute."""
        each = (self.of_round(number).pairs.custom_rule for number in (1, 2)[: self.rounds])
        return [rule for rule in each if rule is not None]

    def with_code(self, change: Callable[[str], str]) -> "RefineConfig":
        """Return the section with its references to code changed by `change`."""
        pairs, even = self.pairs, _even_rule(self.even_rounds, change)
        if pairs.custom_rule is not None:
            pairs = pairs.model_copy(update={"rule": change(pairs.custom_rule)})
        return self.model_copy(update={"pairs": pairs, "even_rounds": even})

    @field_validator("even_rounds")
    @classmethod
    def _relative_to_the_job(
        cls, even_rounds: dict[str, JsonValue], info: ValidationInfo
    ) -> dict[str, JsonValue]:
        current = with_current_names(even_rounds, ("even_rounds",))
        return _even_rule(current, lambda rule: resolved(rule, info))

    def of_round(self, number: int) -> "RefineConfig":
        """Return the settings of round `number` (1 .. rounds)."""
        if not self.even_rounds:
            return self
        odd = self.model_dump(exclude={"even_rounds"})
        return RefineConfig.model_validate(odd if number % 2 else merged(odd, self.even_rounds))

    @property
    def needs_reference(self) -> bool:
        """Whether the training compares with the log-probabilities of another model."""
        return self.loss != "rft"

    def _even_problems(self) -> list[str]:
        """Return what is wrong with `even_rounds`."""
        fixed = [name for name in ("rounds", "even_rounds") if name in self.even_rounds]
        if fixed:
            return [f"even_rounds holds {', '.join(fixed)}, which are not a round's. Remove it"]
        try:
            self.of_round(2)
        except ValidationError as error:
            return [
                f"even_rounds.{'.'.join(map(str, found['loc']))}: {found['msg']}"
                for found in error.errors()
            ]
        return []

    def _unused(self) -> list[str]:
        """Return the settings that the loss does not use."""
        used_by = {
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
            f"{name} is set, but loss '{self.loss}' does not use it. Remove it, or choose one"
            f" of {', '.join(losses)}"
            for name, losses in used_by.items()
            if getattr(self, name) != fields[name].default and self.loss not in losses
        ]


def _even_rule(even: dict[str, JsonValue], change: Callable[[str], str]) -> dict[str, JsonValue]:
    """Return the settings of even rounds with their custom pair rule changed by `change`."""
    pairs = even.get("pairs")
    rule = pairs.get("rule") if isinstance(pairs, dict) else None
    if not isinstance(pairs, dict) or not isinstance(rule, str) or not user_code.is_reference(rule):
        return even
    return {**even, "pairs": {**pairs, "rule": change(rule)}}
