"""What a benchmark is: where its rows are, what they mean, and how an answer is judged.

One file each beside this one; `registry.py` names them all. To add one: copy the nearest file,
write its `to_question`, and give it a line in the registry.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from sirt_ray.errors import DataError
from sirt_ray.types import LETTERS, Judgement, Question
from sirt_ray.user_code import UserFunction
from sirt_ray.verifier import answers, numerals

Row = Mapping[str, Any]
"""One row as the data set has it; untrusted."""

PAPER_NUM_TRAIN = 4000
"""Training questions of each multiple-choice task, "with equally distributed target classes"."""

Part = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Hub:
    """A data set on the Hugging Face hub."""

    dataset: str
    revision: str
    """A commit. Two data sets have only a loading script on their main branch, which `datasets` no
    longer runs; for them it is `refs/convert/parquet`, the hub's own conversion, which is a branch:
    there the hash of the rows in the questions' record is what pins them."""
    configs: tuple[str, ...] = ()
    """Loaded one after the other. Empty: the default one."""
    files: str | None = None
    """Path of a split's files in the data set, with `{split}`; None: what the card declares."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A task of `quickstart/tasks.py`, named like the benchmark, without any file."""

    num_train: int
    """Training questions where the job does not say how many, the held-out ones not counted."""
    num_test: int


@dataclass(frozen=True, slots=True)
class CustomSource:
    """A task that the job file describes (`own.py`)."""

    rows: UserFunction | None
    """What makes them; None: they are local files."""
    identity: Mapping[str, object]
    """What decides the meaning of the rows and of answers."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """See `gsm8k.py` for a complete example."""

    name: str
    version: int
    """Raised whenever the same row becomes another question, is asked in other words or is judged
    differently."""
    kind: answers.AnswerKind
    source: Hub | Generated | CustomSource
    columns: tuple[str, ...]
    """Columns that `to_question` needs."""
    to_question: Callable[[Row, str], Question]
    """(row, id) -> question; DataError says what is wrong with the row."""
    train: tuple[str, ...] = ("train",)
    """Names of the training split: the hub's first, then others that local files may have. Empty:
    the benchmark is only evaluated."""
    test: tuple[str, ...] = ("test",)
    """Likewise for the questions that are reported on."""
    balanced: bool = False
    """Whether training questions are chosen with each answer letter equally often."""
    default_num_train: int | None = None
    """Training questions where the job does not say how many; None: all."""
    labels: tuple[str, ...] = tuple(LETTERS)
    """What the rows call their options, in order."""
    equivalent: answers.Equivalent | None = None
    """Asked about expressions that do not look the same."""
    judge: Callable[[str, Question], Judgement] | None = None
    """Asked in the place of our verifier."""

    def split_names(self, part: Part) -> tuple[str, ...]:
        return self.train if part == "train" else self.test

    def grade(self, text: str, question: Question) -> Judgement:
        """The verdict on a completion, and the final answer found in it. No text makes our verifier
        raise."""
        if self.judge is not None:
            return self.judge(text, question)
        reference, choices = question.reference, question.choices
        return answers.grade(text, reference, self.kind, choices, self.equivalent)


def text_in(row: Row, column: str) -> str:
    """The text of a column, which must be there and not be blank."""
    if column not in row:
        raise DataError(f"column {column!r} is missing")
    value = row[column]
    if not isinstance(value, str):
        raise DataError(f"{column!r} is {_shown(value)} and not text")
    if not value.strip():
        raise DataError(f"{column!r} is empty")
    return value.strip()


def open_question(benchmark: str, id: str, text: str, gold: object) -> Question:
    """A question that is answered with a number, which `gold` must be."""
    number = numerals.canonical(str(gold))
    if number is None:
        raise DataError(f"the gold answer {_shown(gold)} is not a number")
    return Question(id, benchmark, text, (), number)


def choice_question(
    benchmark: str,
    id: str,
    text: str,
    choices: Sequence[str],
    gold: object,
    labels: Sequence[object] = LETTERS,
) -> Question:
    """A question with options; `gold` is the label of the right one, `labels` are theirs, in
    order."""
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"there are {len(choices)} options, not 2 to {len(LETTERS)}")
    for position, choice in enumerate(choices):
        if not str(choice).strip():
            raise DataError(f"option {LETTERS[position]} is empty")
    names = [str(label).strip() for label in labels[: len(choices)]]
    label = str(gold).strip()
    if label not in names:
        raise DataError(f"the gold answer {_shown(gold)} is none of the options {', '.join(names)}")
    letter = LETTERS[names.index(label)]
    return Question(id, benchmark, text, tuple(str(choice).strip() for choice in choices), letter)


def labelled_choices(row: Row) -> tuple[list[str], list[str]]:
    """Labels and texts of a column `choices` with the lists `label` and `text`."""
    choices = row.get("choices")
    if not isinstance(choices, Mapping):
        raise DataError(f"'choices' is {_shown(choices)} and not a record of 'label' and 'text'")
    record = cast(Mapping[str, object], choices)
    labels, texts = strings(record.get("label")), strings(record.get("text"))
    if len(labels) != len(texts):
        raise DataError(f"'choices' has {len(labels)} labels and {len(texts)} texts")
    return labels, texts


def strings(value: object) -> list[str]:
    """A list of texts, whatever sequence the reader made of it."""
    if value is None or isinstance(value, str) or not hasattr(value, "__iter__"):
        raise DataError(f"the options are {_shown(value)} and not a list")
    return [str(item) for item in cast("Sequence[object]", value)]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
