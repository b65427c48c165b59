"""Every benchmark under the name that job files use."""

from collections.abc import Callable, Mapping
from functools import partial

from sirt_ray.benchmarks.base import Benchmark
from sirt_ray.benchmarks.commonsense_qa import COMMONSENSE_QA
from sirt_ray.benchmarks.custom import custom_benchmark
from sirt_ray.benchmarks.gsm8k import GSM8K
from sirt_ray.benchmarks.math import MATH
from sirt_ray.benchmarks.mmlu import MMLU
from sirt_ray.benchmarks.multiarith import MULTIARITH
from sirt_ray.benchmarks.openbookqa import OPENBOOKQA
from sirt_ray.benchmarks.piqa import PIQA
from sirt_ray.benchmarks.social_i_qa import SOCIAL_I_QA
from sirt_ray.benchmarks.synthetic import (
    LETTER_CHOICES,
    LETTER_CHOICES_OOD,
    WORD_PROBLEMS,
    WORD_PROBLEMS_OOD,
)
from sirt_ray.config.data import DataConfig
from sirt_ray.types import Judgement, Question

REGISTRY: dict[str, Benchmark] = {
    "gsm8k": GSM8K,
    "multiarith": MULTIARITH,
    "commonsense_qa": COMMONSENSE_QA,
    "openbookqa": OPENBOOKQA,
    "piqa": PIQA,
    "social_i_qa": SOCIAL_I_QA,
    "math": MATH,
    "mmlu": MMLU,
    "word_problems": WORD_PROBLEMS,
    "word_problems_ood": WORD_PROBLEMS_OOD,
    "letter_choices": LETTER_CHOICES,
    "letter_choices_ood": LETTER_CHOICES_OOD,
}


def benchmarks_of(data: DataConfig) -> Mapping[str, Benchmark]:
    """Return these and the job's custom benchmarks. Raises ConfigError if user code is missing."""
    return {**REGISTRY, **_custom_benchmarks(data)}


def grade(text: str, question: Question) -> Judgement:
    """Return the judgement of the question's benchmark on a completion's text."""
    return REGISTRY[question.benchmark].grade(text, question)


def grade_of(data: DataConfig) -> Callable[[str, Question], Judgement]:
    """Return `grade` for a job with custom benchmarks. It can be pickled, with its user code."""
    custom = _custom_benchmarks(data)
    return partial(_grade, custom) if custom else grade


def _custom_benchmarks(data: DataConfig) -> dict[str, Benchmark]:
    return {name: custom_benchmark(name, config) for name, config in data.custom_benchmarks.items()}


def _grade(custom: Mapping[str, Benchmark], text: str, question: Question) -> Judgement:
    benchmark = custom.get(question.benchmark) or REGISTRY[question.benchmark]
    return benchmark.grade(text, question)
