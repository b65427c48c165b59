"""The stored answers of a run -> figures of each benchmark and kind of prompt."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from sirt_ray.artifacts import parquet
from sirt_ray.core.statistics import majority, pass_at_k
from sirt_ray.types import PromptKind

# FOLDED core.chain_of_thought: Whether an answer shows how it was found.

_SENTENCE_END = re.compile(r"[.!?]+(?=\s|\Z)|\n")
_WORD = re.compile(r"\w+")
_FEWEST_WORDS = 3
"""Of a sentence: `A) Venice.` and `Mr.` are none."""
# Every part is bounded: model output is untrusted, and must not take more than linear time.
_STEP = re.compile(
    r"[0-9)%]\s{0,3}[-+*/x\u00d7\u00f7\u2212]\s{0,3}[$(]{0,2}[0-9][^=\n]{0,40}=\s{0,3}[-$(]{0,2}[0-9]"
)


def has_chain_of_thought(text: str) -> bool:
    """Whether a text reasons before it concludes: it has two sentences or more, or an arithmetic
    step.

    A sentence ends in `.`, `!`, `?` or at the line's end and has three words or more; of two, one
    stands before the conclusion. An arithmetic step is an operation on numbers with its result, as
    in `16 - 7 = 9`. Whether the reasoning is any good is not asked.

    Examples::

        has_chain_of_thought("The answer is 18.") is False
        has_chain_of_thought("16 - 7 = 9, so the answer is 9.") is True
        has_chain_of_thought("Venice is built on canals. The answer is D.") is True
    """
    sentences = [part for part in _SENTENCE_END.split(text) if _long_enough(part)]
    return len(sentences) > 1 or _STEP.search(text) is not None


def _long_enough(sentence: str) -> bool:
    return len(_WORD.findall(sentence)) >= _FEWEST_WORDS


Task = tuple[str, PromptKind]
"""A benchmark, and the kind of prompt it is asked with."""

_SHOWN = ("question_id", "benchmark", "prompt_kind", "verdict")
_TEXT = ("completion", "completion_ids", "stop_reason")


@dataclass(frozen=True, slots=True)
class Answers:
    """What one stage answered to one benchmark's test questions with one kind of prompt."""

    right: Mapping[str, bool]
    """Question id -> right?; False also for what was not answered."""
    tokens: float | None
    """Mean length of an answer, with its end-of-sequence token; None where its tokens are not
    known, as of an endpoint."""
    with_chain: float
    """Share of answers with a chain of thought, `core/chain_of_thought.py`."""
    unparseable: float
    truncated: float
    """Shares of answers."""


def asked_in(questions: Path, benchmarks: Sequence[str]) -> dict[str, list[str]]:
    """Benchmark -> ids of its test questions, from the artifact `questions`."""
    return {
        name: [row["id"] for row in parquet.rows(questions / name / "test.parquet", ["id"])]
        for name in benchmarks
    }


def read_answers(
    evaluation: Path, asked: Mapping[str, Sequence[str]], prompts: Sequence[PromptKind]
) -> dict[Task, Answers]:
    """A stage's answers to the test questions `asked`. The answers to validation questions, which
    lie in the same files, are left out."""
    wanted = {question for ids in asked.values() for question in ids}
    found: defaultdict[Task, list[dict[str, Any]]] = defaultdict(list)
    for row in parquet.rows(evaluation, [*_SHOWN, *_TEXT]):
        if row["question_id"] in wanted:
            found[row["benchmark"], row["prompt_kind"]].append(_judged(row))
    return {
        (name, kind): _answers(asked[name], found[name, kind])
        for name, kind in product(asked, prompts)
    }


def read_right(
    evaluation: Path, asked: Mapping[str, Sequence[str]], prompts: Sequence[PromptKind]
) -> dict[Task, dict[str, bool]]:
    """Of a stage's answers to the test questions `asked`, only: question id -> right?"""
    found = {
        (row["prompt_kind"], row["question_id"])
        for row in parquet.rows(evaluation, _SHOWN)
        if row["verdict"] == "right"
    }
    return {
        (name, kind): {question: (kind, question) in found for question in asked[name]}
        for name, kind in product(asked, prompts)
    }


def _judged(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a row: a whole evaluation's texts and tokens need not lie in memory."""
    return {
        "question_id": row["question_id"],
        "right": row["verdict"] == "right",
        "unparseable": row["verdict"] == "unparseable",
        "tokens": len(row["completion_ids"]),
        "with_chain": has_chain_of_thought(row["completion"]),
        "truncated": row["stop_reason"] == "length",
    }


def _answers(asked: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Answers:
    right = {row["question_id"] for row in rows if row["right"]}
    tokens = [row["tokens"] for row in rows if row["tokens"]]

    def share(what: str) -> float:
        return fmean(row[what] for row in rows) if rows else 0.0

    return Answers(
        right={question: question in right for question in asked},
        tokens=fmean(tokens) if tokens else None,
        with_chain=share("with_chain"),
        unparseable=share("unparseable"),
        truncated=share("truncated"),
    )


@dataclass(frozen=True, slots=True)
class Sampled:
    """A round's samples of one benchmark with one kind of prompt; shares of questions."""

    questions: int
    pass_at: Mapping[int, float]
    """k -> pass@k, for the powers of two up to the samples of a question, and their number."""
    majority: float
    """The most frequent final answer of all samples is right."""
    samples: int
    """Of each question; the fewest where that differs."""


def read_samples(samples: Path) -> dict[Task, Sampled]:
    """The figures of a round's samples."""
    found: defaultdict[Task, defaultdict[str, list[tuple[str | None, bool]]]]
    found = defaultdict(lambda: defaultdict(list))
    for row in parquet.rows(samples, [*_SHOWN, "extracted"]):
        of_task = found[row["benchmark"], row["prompt_kind"]]
        of_task[row["question_id"]].append((row["extracted"], row["verdict"] == "right"))
    return {task: _sampled(list(questions.values())) for task, questions in found.items()}


def _sampled(questions: Sequence[Sequence[tuple[str | None, bool]]]) -> Sampled:
    fewest = min(map(len, questions))
    tried = sorted({2**power for power in range(fewest.bit_length())} | {fewest})
    counted = [(len(samples), sum(right for _, right in samples)) for samples in questions]
    return Sampled(
        questions=len(questions),
        pass_at={k: fmean(pass_at_k(n, right, k) for n, right in counted) for k in tried},
        majority=fmean(map(majority, questions)),
        samples=fewest,
    )
