"""The synthetic tasks: pure, disjoint, and right when solved again from the question's text."""

import re

import pytest

from sirt_ray.errors import DataError
from sirt_ray.quickstart import tasks
from sirt_ray.types import LETTERS, Split

LARGEST = ("largest?", "most?", "biggest?", "highest?")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
GAIN = re.compile(r"buys|finds|wins|collects|gets|(?:gives \w+ \d+ more)")


def solve_word_problem(text: str) -> int:
    """Read the story sentence by sentence."""
    have: dict[str, int] = {}
    hero = text.split()[0]
    shared: int | None = None
    for sentence in re.findall(r"[^.?]+[.?]", text):
        numbers = [int(number) for number in re.findall(r"\d+", sentence)]
        if sentence.strip().startswith("How many"):
            continue
        if " in each " in sentence:
            have[hero] = numbers[0] * numbers[1]
        elif (more := re.search(r"(\w+) has (\d+) (more|fewer) \w+ than", sentence)) is not None:
            sign = 1 if more[3] == "more" else -1
            shared = 2 * have[hero] + sign * numbers[0]
        elif " They " in sentence:
            assert shared is not None
            shared -= numbers[0]
        elif " has " in f" {sentence}":
            have[hero] = numbers[0]
        else:
            have[hero] += numbers[0] if GAIN.search(sentence) else -numbers[0]
    return have[hero] if shared is None else shared


def solve_letter_choice(text: str, choices: list[str]) -> str:
    """Compare the options' numbers."""
    sizes = [int(choice.split()[0]) for choice in choices]
    winner = max(sizes) if text.split()[-1] in LARGEST else min(sizes)
    return LETTERS[sizes.index(winner)]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_rows_are_a_pure_function_of_task_split_index_and_seed(task: str) -> None:
    ten = tasks.rows(task, "train", 10)
    assert tasks.rows(task, "train", 10) == ten
    assert tasks.rows(task, "train", 3) == ten[:3]
    assert tasks.rows(task, "train", 10, seed=1) != ten


@pytest.mark.parametrize("task", tasks.TASKS)
def test_no_question_is_in_two_splits(task: str) -> None:
    seen: dict[str, Split] = {}
    for split in SPLITS:
        for seed in (0, 1):
            for row in tasks.rows(task, split, 300, seed):
                assert seen.setdefault(row["question"], split) == split


@pytest.mark.parametrize("task", ["word_problems", "word_problems_ood"])
def test_word_problem_answers_are_recomputed(task: str) -> None:
    for row in tasks.rows(task, "train", 1500):
        working, answer = row["answer"].split("\n#### ")
        assert int(answer) == solve_word_problem(row["question"]), row
        for left, sign, right, result in re.findall(r"(\d+)([+*-])(\d+)=(\d+)", working):
            by_sign = {
                "+": int(left) + int(right),
                "-": int(left) - int(right),
                "*": int(left) * int(right),
            }
            assert by_sign[sign] == int(result), row
            assert 1 <= int(result) <= tasks.LARGEST_RESULT
        assert re.findall(r"\d+", working)[-1] == answer


@pytest.mark.parametrize("task", ["letter_choices", "letter_choices_ood"])
def test_letter_choice_answers_are_recomputed(task: str) -> None:
    for row in tasks.rows(task, "train", 1500):
        texts = row["choices"]["text"]
        assert row["choices"]["label"] == list("ABCDE"[: len(texts)])
        assert len(set(texts)) == len(texts)
        assert row["answerKey"] == solve_letter_choice(row["question"], texts), row


def test_letter_choice_working_orders_every_option() -> None:
    item = tasks.problem("letter_choices", "test", 0, 0)
    ordered = re.findall(r"\(([A-E])\) (\d+)", item.working)
    sizes = [int(size) for _, size in ordered]
    assert sizes == sorted(sizes, reverse=True)
    for letter, size in ordered:
        assert item.choices[LETTERS.index(letter)].split()[0] == size
    assert len(ordered) == len(item.choices)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_completions_are_one_line_that_states_the_answer(task: str) -> None:
    for index in range(50):
        item = tasks.problem(task, "validation", index, 0)
        assert item.cot_completion.startswith(" ")
        assert "\n" not in item.cot_completion
        assert item.cot_completion.endswith(f". The answer is {item.answer}.")
        assert item.answer_completion == f" The answer is {item.answer}."


def test_unknown_task_is_named() -> None:
    with pytest.raises(DataError, match="word_problem'"):
        tasks.rows("word_problem", "train", 1)
