"""How many questions the splits have that are trained on and reported on, as published: for plans
that read no rows. `num_train` and `num_test` of a job may take fewer."""

from collections.abc import Mapping

from sirt_ray.benchmarks.base import Part

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
