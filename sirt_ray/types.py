"""The records that are passed between the stages.

    Question --teacher--> Graded --keep--> Demonstration
    Question --student--> Graded --pair--> PreferencePair

Every record is frozen and made of plain Python values, so that it crosses process and machine
boundaries unchanged and is a row of Parquet (`artifacts/parquet.py`).
"""

from dataclasses import dataclass
from typing import Literal

PromptKind = Literal["cot", "plain"]
"""`cot`: the prompt ends in the chain-of-thought trigger (x_CoT). `plain`: it does not (x)."""

Verdict = Literal["right", "wrong", "unparseable"]

Split = Literal["train", "validation", "test"]
"""`train` is for demonstrations and pairs, `validation` for decisions (checkpoints, roll-back),
`test` is only reported."""

StopReason = Literal["stop", "length"]
"""`stop`: the model ended its answer. `length`: it was truncated by the token limit."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The labels of a question's options, in order."""


@dataclass(frozen=True, slots=True)
class Question:
    """One benchmark row in the common form of all stages.

    Example::

        Question(
            id="commonsense_qa/train/17",
            benchmark="commonsense_qa",
            text="Where in Southern Europe would you find many canals?",
            choices=("Michigan", "New York", "Amsterdam", "Venice", "Bridge"),
            reference="D",
        )
    """

    id: str
    """`<benchmark>/<split>/<row>`; unique in a run and the same in every run on the same rows."""
    benchmark: str
    text: str
    choices: tuple[str, ...]
    """The options' texts in the order A, B, C, ...; empty for an open question."""
    reference: str
    """The final answer against which completions are graded: a number or expression, or a choice's
    letter. The benchmark's gold answer, or the teacher's (`refine.ground_truth`)."""
    instruction: str | None = None
    """The prompt's first line; None: the default of the question's kind (`core/prompts.py`)."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The output of a model for one prompt, token by token.

    `prompt_ids` and `completion_ids` are those of the sampler; nothing is tokenised a second time.
    If `stop_reason` is `stop`, the last completion token is the model's end-of-sequence token.
    """

    question_id: str
    benchmark: str
    prompt_kind: PromptKind
    sample_index: int
    """0 .. n-1 among the completions of the same question and prompt kind."""
    prompt: str
    text: str
    """The decoded completion, without special tokens."""
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    stop_reason: StopReason
    model_version: str
    """The weights that sampled it: `teacher`, `baseline`, `round_00`, `round_01`, ..."""
    seed: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verifier's judgement of a text.

    Example::

        Judgement("right", "18", stated=True)     # of "9 * 2 = 18. The answer is 18."
    """

    verdict: Verdict
    extracted: str | None
    """The final answer found in the text; None where the verdict is `unparseable`."""
    stated: bool
    """Whether the text marks this as its answer. False if it is a guess, the last number, formula
    or option that the text mentions, and if there is none."""
    undecided: bool = False
    """Whether the comparison with the reference was aborted because it took too much time or
    memory. The verdict is `wrong` then."""


@dataclass(frozen=True, slots=True)
class Graded:
    """A completion with the verifier's judgement of its final answer."""

    completion: Completion
    verdict: Verdict
    extracted: str | None
    """Verdict and final answer of the `Judgement`."""
    reference: str
    """That of the question."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A teacher's chain-of-thought answer that the student is tuned on: (instruction, question,
    answer) of the paper, section 2.1."""

    question: Question
    graded: Graded


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Chosen over rejected, for one prompt: the unit of self-refinement.

    The rejected completion may have been sampled from another prompt than the chosen one (the
    paper's rule rejects the Answer to the plain prompt); both are scored after `prompt_ids`.

    Example::

        PreferencePair(question_id="gsm8k/train/3", benchmark="gsm8k", rule="correctness",
                       prompt="Question: ...", prompt_ids=(1, 17, 9), chosen=right, rejected=wrong)
    """

    question_id: str
    benchmark: str
    rule: str
    prompt: str
    prompt_ids: tuple[int, ...]
    chosen: Graded
    rejected: Graded | None
    """None if the chosen completion is only to be imitated."""


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy of one model on one benchmark with one kind of prompt."""

    accuracy: float
    """Share of questions with a right answer, 0 .. 1. Wrong, unparseable and unanswered all count
    as not right."""
    stderr: float
    """Binomial standard error of `accuracy`."""
    n: int
    """Number of questions."""


Scores = dict[str, dict[PromptKind, Score]]
"""benchmark -> prompt kind -> score, for one stage."""
