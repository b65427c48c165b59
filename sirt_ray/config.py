"""The tree of a job file. A default has its home here and nowhere else.

Defaults are the paper's where the paper says (`jobs/README.md` lists the departures and what is not
known); a field's documentation stands under it. Unknown keys are refused, cross-field nonsense is
refused, and every problem is reported at once. `sirt_ray.jobfile` reads the YAML and turns the
problems into one message with file and line.

Two kinds of settings are kept apart. What decides the result (data, models, seeds, sampling,
training) is part of an artifact's identity. Where and how fast it runs (`resources`, `output`,
`data.root`, an endpoint's URL, pace and budget) never is.
"""

from typing import Annotated, Literal, cast

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sirt_ray.resources import ResourcesConfig
from sirt_ray.settings import Count, Fraction, NonNegative, Positive, SamplingConfig, Section
from sirt_ray.teachers import TeacherConfig
from sirt_ray.types import PromptKind


class DataConfig(Section):
    train: list[str] = Field(min_length=1)
    """Benchmarks whose training questions are demonstrated and refined on: the in-domain ones."""
    evaluate: list[str] = Field(min_length=1)
    """Benchmarks to report on; those not in `train` are out-domain."""
    root: str | None = None
    """Folder of local rows (`<root>/<benchmark>/<split>.parquet|.jsonl|.csv`) in the columns of the
    hub's data sets. Without it rows come from the hub at a pinned revision."""
    num_train: Count | None = None
    """Training questions per benchmark, class-balanced where there are classes. None: the paper's
    protocol (4000 for the four QA tasks, all of GSM8K and MultiArith)."""
    num_validation: NonNegative = 200
    """Held-out questions per training benchmark, taken from its training rows and never trained
    on. They choose checkpoints and decide on roll-back."""
    num_test: Count | None = None
    """Test questions per benchmark; None: the whole split."""

    @model_validator(mode="after")
    def _known_and_distinct(self, info: ValidationInfo) -> "DataConfig":
        known = cast("dict[str, set[str]]", info.context or {}).get("benchmarks", set())
        for field in ("train", "evaluate"):
            names: list[str] = getattr(self, field)
            if len(set(names)) != len(names):
                raise ValueError(f"{field} names a benchmark twice: {', '.join(names)}")
            unknown = [name for name in names if name not in known]
            if known and unknown:
                raise ValueError(
                    f"{field} names no known benchmark: {', '.join(unknown)}. "
                    f"Known are {', '.join(sorted(known))}"
                )
        return self


class DemonstrationsConfig(Section):
    """Stage 1: the teacher answers the training questions, zero-shot with the trigger."""

    keep: Literal["right", "all"] = "right"
    """`right`: keep demonstrations whose final answer matches the gold answer. `all`: keep every
    finished one (the paper does not say that it filters)."""
    samples_per_question: Count = 1
    """Completions asked of the teacher for each question; the first that is kept is used. Of
    `teacher.demonstrations` all are tried."""


class LoraConfig(Section):
    rank: Count = 8
    alpha: Positive = 16
    dropout: Fraction = 0.0
    """Must be 0 for self-refinement: the reference and the policy have to agree at step 0."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class TrainingConfig(Section):
    """What instruction tuning and self-refinement have in common."""

    learning_rate: Positive
    batch_size: Count
    """Sequences (tuning) or pairs (refining) for one optimizer step, over all workers."""
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
    evaluate_every_steps: Count = 50
    """Validation loss every so many steps, and after the last."""
    choose: Literal["best", "last"] = "best"
    """`best`: the checkpoint with the lowest validation loss (the paper); `last`: the last step."""


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
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the demonstrations held out for the validation loss."""


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
    beta: Positive = 0.1
    nll_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the chosen completion's length-normalised NLL added to the loss (Iterative RPO)."""
    learning_rate: Positive = 1e-6
    batch_size: Count = 128
    epochs: Positive = 1
    max_steps: Count | None = 1000
    warmup_steps: NonNegative = 100
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the questions whose pairs are held out for the validation loss."""
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
        if problems:
            raise ValueError("; ".join(problems))
        return self


class StudentConfig(Section):
    model: str
    """Path or hub name of the base model, `quickstart:student` for the one that is shipped."""
    revision: str | None = None


class EvaluationConfig(Section):
    prompts: list[PromptKind] = Field(default=["cot", "plain"], min_length=1)
    sampling: SamplingConfig = SamplingConfig()
    teacher: bool = True
    """Also score the teacher on the test questions, where there is one that can be asked."""


class JobConfig(Section):
    """One run. `sirt run` writes it, resolved, to the run folder's `config.yaml`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run folder."""
    output: str = "runs"
    """The run folder is `<output>/<name>`."""
    seed: NonNegative = 0
    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    demonstrations: DemonstrationsConfig = DemonstrationsConfig()
    tune: TuneConfig = TuneConfig()
    refine: RefineConfig = RefineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @field_validator("name")
    @classmethod
    def _not_hidden(cls, name: str) -> str:
        if ".." in name:
            raise ValueError("must not contain '..': it names a folder")
        return name
