"""A task of one's own in a job file: `data.benchmarks`, name -> where its rows are and what they
mean.

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
    """As seen from the working directory; the context may say in which folder the job file lies."""
    folder = cast("dict[str, Path]", info.context or {}).get("folder")
    checked = user_code.checked(reference)
    return checked if folder is None else user_code.resolve_in_run(checked, folder)


Reference = Annotated[str, AfterValidator(resolved)]
"""`path.py:function`; in a job file, as seen from it."""


class CustomBenchmarkConfig(Section):
    rows: Reference | None = None
    """A function `(split: str) -> iterable of rows`, `split` being "train" or "test", that gives
    the same rows whenever it is called; a row is a dict of the columns below. None: the rows are
    files, `<data.root>/<name>/<train|test>.parquet|.jsonl|.csv`."""
    question: str = "question"
    """Column with the question's text."""
    answer: str = "answer"
    """Column with the gold answer; of a question with options the right one's letter, its text, or
    its position from 0."""
    choices: str | None = None
    """Column with the list of options. None: the questions are open."""
    kind: Literal["number", "expression", "text"] = "number"
    """What an open question is answered with. `text` is whatever `verifier` understands."""
    instruction: str | None = Field(default=None, min_length=1)
    """The first line of the prompt. None: that of the other questions of its kind."""
    verifier: Reference | None = None
    """A function `(text: str, question: Question) -> Judgement` in the place of ours: both are
    records of `sirt_ray.types`. It must give the same for the same text, and is called from several
    threads at once."""

    @model_validator(mode="before")
    @classmethod
    def _only_rows(cls, given: Any) -> Any:
        return {"rows": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _can_be_judged(self) -> "CustomBenchmarkConfig":
        if self.kind == "text" and self.choices is None and self.verifier is None:
            raise ValueError(
                "kind 'text' can be any text, and there is no verifier to judge it. Set verifier to"
                " a function of a Python file, as in my_task.py:judge, or kind to 'number' or"
                " 'expression'"
            )
        return self

    @property
    def code(self) -> Iterator[str]:
        yield from (reference for reference in (self.rows, self.verifier) if reference)

    @property
    def identity(self) -> dict[str, object]:
        """All that decides what its rows mean and what is right."""
        return self.with_code(user_code.identity).model_dump()

    def with_code(self, change: Callable[[str], str]) -> "CustomBenchmarkConfig":
        """The same with other references."""
        given = {"rows": self.rows, "verifier": self.verifier}
        return self.model_copy(update={name: ref and change(ref) for name, ref in given.items()})
