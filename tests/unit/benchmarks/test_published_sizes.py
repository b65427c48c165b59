"""Real rows against what their authors publish: sizes, balance, and the paper's protocol."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sirt_ray.benchmarks import files
from sirt_ray.benchmarks.base import PAPER_NUM_TRAIN, Hub, Part
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.benchmarks.selection import select_training, text_key
from sirt_ray.errors import DataError
from sirt_ray.types import Question

SIZES = {
    # Cobbe et al. 2021 round to 7.5K and 1K; the exact ones are the hub card's (openai/gsm8k).
    ("gsm8k", "train"): 7473,
    ("gsm8k", "test"): 1319,
    # Roy and Roth 2015 have 600 problems; the split is the hub card's (ChilleD/MultiArith).
    ("multiarith", "train"): 420,
    ("multiarith", "test"): 180,
    # Talmor et al. 2019, the random split.
    ("commonsense_qa", "train"): 9741,
    ("commonsense_qa", "validation"): 1221,
    # Mihaylov et al. 2018.
    ("openbookqa", "train"): 4957,
    ("openbookqa", "validation"): 500,
    ("openbookqa", "test"): 500,
    # Bisk et al. 2020 round to 16K and 2K; the exact ones are the hub card's (ybisk/piqa).
    ("piqa", "train"): 16113,
    ("piqa", "validation"): 1838,
    # Sap et al. 2019.
    ("social_i_qa", "train"): 33410,
    ("social_i_qa", "validation"): 1954,
    # Hendrycks et al. 2021; the 500 are those of Lightman et al. 2023.
    ("math", "train"): 7500,
    ("math", "test"): 5000,
    ("math", "test500"): 500,
    # Hendrycks et al. 2021 say 14,079, the hub card (cais/mmlu) 14,042. A local file may hold the
    # subjects that the authors group as STEM.
    ("mmlu", "test"): 14042,
    ("mmlu", "test_stem"): 3018,
}
OPTIONS = {"commonsense_qa": "ABCDE", "openbookqa": "ABCD", "piqa": "AB", "social_i_qa": "ABC"}
HUB = [name for name, benchmark in REGISTRY.items() if isinstance(benchmark.source, Hub)]


def parts(assets: Path, name: str) -> Iterator[tuple[Part, str, list[Question]]]:
    """What is there of a benchmark: the part it is used for, the split's own name, questions."""
    benchmark = REGISTRY[name]
    wanted: tuple[Part, ...] = ("train", "test")
    for part in wanted:
        try:
            paths = files.find(assets / "data", benchmark, part)
        except DataError:
            continue
        given = [row for path in paths for row in pq.read_table(path).to_pylist()]
        folder = assets / "data" / name
        split = paths[0].relative_to(folder).parts[0].removesuffix(paths[0].suffix)
        ids = (f"{name}/{part}/{number}" for number in range(len(given)))
        questions = [benchmark.to_question(row, at) for row, at in zip(given, ids, strict=True)]
        yield part, split, questions


@pytest.mark.parametrize("name", HUB)
def test_splits_are_as_large_as_published(assets: Path, name: str) -> None:
    found = {split: len(questions) for _, split, questions in parts(assets, name)}
    assert found
    assert found == {split: SIZES[name, split] for split in found}
    for part, split, _ in parts(assets, name):
        assert split in REGISTRY[name].split_names(part)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_of_the_task(assets: Path, name: str) -> None:
    for _, _, questions in parts(assets, name):
        assert {len(question.choices) for question in questions} == {len(OPTIONS[name])}
        assert {question.reference for question in questions} == set(OPTIONS[name])


@pytest.mark.parametrize("name", ["commonsense_qa", "openbookqa"])
def test_4000_training_questions_have_each_answer_equally_often(assets: Path, name: str) -> None:
    """The paper, section 3.1; both of these divide."""
    training = {part: questions for part, _, questions in parts(assets, name)}["train"]
    benchmark = REGISTRY[name]
    chosen = select_training(
        name, training, benchmark.default_num_train, 200, benchmark.balanced, seed=0
    )
    each = PAPER_NUM_TRAIN // len(OPTIONS[name])
    assert Counter(q.reference for q in chosen.train) == dict.fromkeys(OPTIONS[name], each)
    assert len(chosen.train) == 4000 and len(chosen.validation) == 200
    assert not {text_key(q) for q in chosen.train} & {text_key(q) for q in chosen.validation}


@pytest.mark.parametrize(("name", "num_train"), [("gsm8k", 7473), ("multiarith", 420)])
def test_math_tasks_are_used_whole(assets: Path, name: str, num_train: int) -> None:
    """The paper, section 3.1. A row that repeats another one is asked once, and counted."""
    training = {part: questions for part, _, questions in parts(assets, name)}["train"]
    benchmark = REGISTRY[name]
    assert benchmark.default_num_train is None and not benchmark.balanced
    chosen = select_training(name, training, None, 0, benchmark.balanced, seed=0)
    assert len(chosen.train) + chosen.counts["dropped_duplicate"] == num_train


def test_plans_count_the_published_splits() -> None:
    """Each benchmark's first split of a kind, which is the hub's."""
    for name, benchmark in REGISTRY.items():
        if not isinstance(benchmark.source, Hub):
            continue
        planned: dict[Part, int] = {
            "train": benchmark.source.num_train,
            "test": benchmark.source.num_test,
        }
        for part, size in planned.items():
            first = benchmark.split_names(part)[:1]
            assert size == sum(SIZES[name, split] for split in first), (name, part)
        assert planned["test"] > 0
