"""The definition of a benchmark: the source of its rows, their meaning, and how an answer is
judged.

Each benchmark is a file of this folder, listed in `registry.py`. To add one: copy the most similar
file, write its `to_question`, and add a line to the registry.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from sirt_ray.core import cells
from sirt_ray.errors import DataError
from sirt_ray.types import LETTERS, Judgement, Question
from sirt_ray.user_code import UserFunction
from sirt_ray.verifier import answers, numerals

Row = Mapping[str, Any]
"""One row in the columns of the data set; untrusted."""

_OPTION_KEYS: tuple[str, ...] = ("label", "text")
_LABELLED: frozenset[str] = frozenset(_OPTION_KEYS)

PAPER_NUM_TRAIN = 4000
"""Training questions of each multiple-choice task, "with equally distributed target classes"
(section 3.1)."""

Part = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Hub:
    """A data set on the Hugging Face hub."""

    dataset: str
    revision: str
    """A commit. Two data sets have only a loading script on their main branch, which `datasets`
    does not run; for them it is `refs/convert/parquet`, the hub's own conversion, which is a
    branch: their rows are pinned by the hash in the record of the questions."""
    num_train: int
    """Training questions as published, for plans, which read no rows; 0 without a training split.
    By the paper or, where it rounds, by the data set's card."""
    num_test: int
    """Questions of the first split of `Benchmark.test`, likewise."""
    configs: tuple[str, ...] = ()
    """Configurations, loaded in this order. Empty: the default one."""
    files: str | None = None
    """Path of a split's files in the data set, with `{split}`; None: as declared in the card."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A task of `quickstart/tasks.py` with the name of the benchmark; it has no files."""

    num_train: int
    """Training questions, without held-out ones, where the job does not set `num_train`."""
    num_test: int
    """Test questions, where the job does not set `num_test`."""


@dataclass(frozen=True, slots=True)
class CustomSource:
    """A task that the job file describes (`custom.py`)."""

    rows: UserFunction | None
    """The function that makes the rows; None: the rows are in local files."""
    identity: Mapping[str, object]
    """The settings that decide the meaning of the rows and of answers."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Gold answers that may be the number of an option, counted from 0 or from 1: what no row tells
    alone, and the column of a split does."""

    of: Callable[[Row], tuple[int, int] | None]
    """(row) -> the number and how many options there are; None where the gold answer is none, or
    names an option otherwise."""
    to_question_from_1: Callable[[Row, str], Question]
    """As `Benchmark.to_question`, which counts from 0."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """See `gsm8k.py` for a complete example."""

    name: str
    version: int
    """Increased whenever the same row becomes another question, gets another prompt or is judged
    differently."""
    kind: answers.AnswerKind
    source: Hub | Generated | CustomSource
    columns: tuple[str, ...]
    """Columns that `to_question` needs."""
    to_question: Callable[[Row, str], Question]
    """(row, question id) -> question. Raises DataError with what is wrong with the row."""
    train: tuple[str, ...] = ("train",)
    """Names of the training split: that of the hub, then others that local files may have. Empty:
    the benchmark is only evaluated."""
    test: tuple[str, ...] = ("test",)
    """Names of the split that is reported on, likewise."""
    balanced: bool = False
    """Whether training questions are chosen with each answer letter equally often."""
    default_num_train: int | None = None
    """Training questions where the job does not set `num_train`; None: all."""
    labels: tuple[str, ...] = tuple(LETTERS)
    """The labels of the options in the rows, in order."""
    equivalent: answers.Equivalent | None = None
    """Compares expressions that do not look the same."""
    positions: Positions | None = None
    """None: numbers, if gold answers are such, mean what `labels` says."""
    judge: Callable[[str, Question], Judgement] | None = None
    """A custom verifier in place of `verifier.answers`."""

    def split_names(self, part: Part) -> tuple[str, ...]:
        """Return the possible names of a split, the preferred one first."""
        return self.train if part == "train" else self.test

    def grade(self, text: str, question: Question) -> Judgement:
        """Return the verdict on a completion, with the final answer found in it. `verifier.answers`
        raises on no text."""
        if self.judge is not None:
            return self.judge(text, question)
        reference, choices = question.reference, question.choices
        return answers.grade(text, reference, self.kind, choices, self.equivalent)


def text_in(row: Row, column: str) -> str:
    """Return the text of a column. Raises DataError where it is missing, blank or no text."""
    if column not in row:
        raise DataError(f"column {column!r} is missing")
    text = cells.text(row[column], column, "user").strip()
    if not text:
        raise DataError(f"{column!r} is empty")
    return text


def open_question(benchmark: str, question_id: str, text: str, gold: object) -> Question:
    """Return a question that is answered with a number. Raises DataError if `gold` is none."""
    number = numerals.canonical(str(gold))
    if number is None:
        raise DataError(f"the gold answer {cells.shown(gold)} is not a number")
    return Question(question_id, benchmark, text, (), number)


def choice_question(
    benchmark: str,
    question_id: str,
    text: str,
    choices: Sequence[str],
    gold: object,
    labels: Sequence[object] = LETTERS,
) -> Question:
    """Return a question with options. `labels`: those of the options, in order; `gold`: that of the
    right one. Raises DataError."""
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"there are {len(choices)} options, not 2 to {len(LETTERS)}")
    for position, choice in enumerate(choices):
        if not str(choice).strip():
            raise DataError(f"option {LETTERS[position]} is empty")
    names = [str(label).strip() for label in labels[: len(choices)]]
    label = str(gold).strip()
    if label not in names:
        raise DataError(
            f"the gold answer {cells.shown(gold)} is none of the options {', '.join(names)}"
        )
    letter = LETTERS[names.index(label)]
    texts = tuple(str(choice).strip() for choice in choices)
    return Question(question_id, benchmark, text, texts, letter)


def labelled_choices(row: Row) -> tuple[list[str], list[str]]:
    """Return the labels and texts of a column `choices` whose options have labels."""
    labels, texts = options(row.get("choices"), "choices")
    if labels is None:
        raise DataError(
            f"'choices' is {cells.shown(row.get('choices'))} and not a record of 'label' and 'text'"
        )
    return labels, texts


def options(value: object, column: str) -> tuple[list[str] | None, list[str]]:
    """Return the labels of options, if they have some, and their texts, from one of

    * a list of texts
    * a record of two lists, `{"label": ["A", "B"], "text": ["chair", "apple"]}`
    * a record of labels and texts, `{"A": "chair", "B": "apple"}`
    * a list of records, `[{"label": "A", "text": "chair"}, {"label": "B", "text": "apple"}]`

    Raises DataError for anything else, as for an option that is null or a list.
    """
    if isinstance(value, Mapping):
        record = cast(Mapping[str, object], value)
        if set(record) >= _LABELLED:
            labels, texts = (strings(record[name], f"{column}.{name}") for name in _OPTION_KEYS)
        else:
            labels = ordered_labels(record)
            texts = strings([record[label] for label in labels], column)
    elif isinstance(value, list) and value and all(map(_is_labelled, cast("list[Any]", value))):
        records = cast("list[Mapping[str, object]]", value)
        labels, texts = (
            strings([record[name] for record in records], f"{column}.{name}")
            for name in _OPTION_KEYS
        )
    else:
        return None, strings(cast(object, value), column)
    if len(labels) != len(texts):
        raise DataError(f"{column!r} has {len(labels)} labels and {len(texts)} texts")
    if len({label.strip() for label in labels}) != len(labels):
        raise DataError(f"{column!r} has a label twice: {', '.join(labels)}")
    return labels, texts


def ordered_labels(record: Mapping[str, object]) -> list[str]:
    """Return the keys of a record of options. A record has no order of its own: letters are put
    into theirs, so that an option keeps its letter."""
    keys = list(record)
    return sorted(keys) if sorted(keys) == list(LETTERS[: len(keys)]) else keys


def strings(value: object, column: str = "choices") -> list[str]:
    """Return a list of texts or numbers as texts, from whatever sequence type the reader made of
    it. Raises DataError for anything else, or if an item is neither."""
    if isinstance(value, str | Mapping) or not hasattr(value, "__iter__"):
        shown = cells.shown(cast(object, value))
        raise DataError(f"{column!r} is {shown} and not a list of options")
    items = list(cast("Sequence[object]", value))
    wrong = [
        f"option {position} is {cells.shown(item)}"
        for position, item in enumerate(items, start=1)
        if not cells.is_scalar(item)
    ]
    if wrong:
        raise DataError(f"{column!r}: {wrong[0]} and neither text nor a number")
    return [cells.encodable(str(item), column) for item in items]


def _is_labelled(option: object) -> bool:
    if not isinstance(option, Mapping):
        return False
    return sorted(cast("Mapping[str, object]", option)) == list(_OPTION_KEYS)
