"""Every benchmark under the name that job files use."""

from collections.abc import Callable, Mapping
from functools import partial

from sirt_ray.benchmarks.base import Benchmark, Part
from sirt_ray.benchmarks.commonsense_qa import COMMONSENSE_QA
from sirt_ray.benchmarks.custom import own_benchmark
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

# FOLDED benchmarks.sizes: How many questions the splits have that are trained on and reported on, as published: for plans
# that read no rows. `num_train` and `num_test` of a job may take fewer.

PUBLISHED: Mapping[tuple[str, Part], int] = {
    ("gsm8k", "train"): 7473,
    ("gsm8k", "test"): 1319,
    ("multiarith", "train"): 420,
    ("multiarith", "test"): 180,
    ("commonsense_qa", "train"): 9741,
    ("commonsense_qa", "test"): 1221,
    ("openbookqa", "train"): 4957,
    ("openbookqa", "test"): 500,
    ("piqa", "train"): 16113,
    ("piqa", "test"): 1838,
    ("social_i_qa", "train"): 33410,
    ("social_i_qa", "test"): 1954,
    ("math", "train"): 7500,
    ("math", "test"): 5000,
    ("mmlu", "test"): 14042,
}
"""By the papers and, where those round, the cards of the hub's data sets. Where a test split has no
public labels, `test` is the validation split that is reported on in its place."""


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
    """Those and the job's own. Raises ConfigError where the code of one is not there."""
    own = {name: own_benchmark(name, config) for name, config in data.custom_benchmarks.items()}
    return {**REGISTRY, **own}


def grade(text: str, question: Question) -> Judgement:
    """What the verifier of the question's benchmark says of a completion's text."""
    return REGISTRY[question.benchmark].grade(text, question)


def grade_of(data: DataConfig) -> Callable[[str, Question], Judgement]:
    """`grade` for a job with tasks of its own. It can be sent to other processes, with its code."""
    own = {name: own_benchmark(name, config) for name, config in data.custom_benchmarks.items()}
    return partial(_grade, own) if own else grade


def _grade(own: Mapping[str, Benchmark], text: str, question: Question) -> Judgement:
    benchmark = own.get(question.benchmark) or REGISTRY[question.benchmark]
    return benchmark.grade(text, question)
