"""Custom benchmarks of a job file: `data.benchmarks`, name -> the rows and what their columns mean.

data:
  train: [coins, trivia]
  evaluate: [coins, trivia]
  root: rows                            # rows/trivia/train.jsonl, rows/trivia/test.jsonl
  benchmarks:
    coins: own_task.py:coins            # a function that makes the rows
    trivia: {question: prompt, answer: target, choices: options}
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from sirt_ray import user_code
from sirt_ray.config.base import Section


def resolved(reference: str, info: ValidationInfo) -> str:
    """Return the reference as seen from the working directory. The context may have the folder of
    the job file."""
    folder = cast("dict[str, Path]", info.context or {}).get("folder")
    checked = user_code.checked(reference)
    return checked if folder is None else user_code.resolve_in_run(checked, folder)


Reference = Annotated[str, AfterValidator(resolved)]
"""`path.py:function`; in a job file, relative to the file."""


class CustomBenchmarkConfig(Section):
    """One custom benchmark."""

    rows: Reference | None = None
    """A function `(split: str) -> iterable of rows`, where `split` is "train" or "test", that
    returns the same rows whenever it is called; a row is a dict of the columns below. None: the
    rows are files, `<data.root>/<name>/<train|test>.parquet|.jsonl|.csv`, or another kind of
    `storage/row_files.py`."""
    question: str = "question"
    """Column with the question's text."""
    answer: str = "answer"
    """Column with the gold answer; for a question with options the label or letter of the right
    option, its text, or its position: from 0, or from 1 where the column has the number of the last
    option and no 0."""
    choices: str | None = None
    """Column with the options: a list of texts, or a record of labels and texts
    (`{"A": "chair", "B": "apple"}`, `{"label": [...], "text": [...]}`). None: the questions are
    open."""
    kind: Literal["number", "expression", "text"] = "number"
    """The kind of answer of an open question. `text` is any text that `verifier` understands."""
    instruction: str | None = Field(default=None, min_length=1)
    """The first line of the prompt. None: the default for the kind of question."""
    verifier: Reference | None = None
    """A function `(text: str, question: Question) -> Judgement` that replaces the built-in
    verifier; both are records of `sirt_ray.types`. It must return the same for the same text, and
    is called from several threads at once."""

    @model_validator(mode="before")
    @classmethod
    def _rows_only(cls, value: Any) -> Any:
        return {"rows": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_a_verifier(self) -> "CustomBenchmarkConfig":
        if self.kind == "text" and self.choices is None and self.verifier is None:
            raise ValueError(
                "kind 'text' can be any text, and there is no verifier to grade it. Set verifier to"
                " a function of a Python file, as in my_task.py:judge, or kind to 'number' or"
                " 'expression'"
            )
        return self

    @property
    def code(self) -> Iterator[str]:
        """The references to code that the benchmark executes."""
        yield from (reference for reference in (self.rows, self.verifier) if reference)

    @property
    def identity(self) -> dict[str, object]:
        """Everything that decides what its rows mean and which answers are right."""
        return self.with_code(user_code.identity).model_dump()

    def with_code(self, change: Callable[[str], str]) -> "CustomBenchmarkConfig":
        """Return the benchmark with its references changed by `change`."""
        code = {"rows": self.rows, "verifier": self.verifier}
        return self.model_copy(update={name: ref and change(ref) for name, ref in code.items()})
