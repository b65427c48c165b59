"""Synthetic reasoning tasks: small enough for a tiny model, shaped like the real benchmarks.

    word_problems    GSM8K's columns: 2-3 steps of arithmetic on a person's things
    letter_choices   commonsense_qa's columns: which pile is the largest or smallest

Each has an `_ood` variant with other wordings, bigger numbers and longer chains.

A row is a pure function of (task, split, index, seed). The splits are disjoint for every seed,
because the hash of the question's text determines its split: a drawn question that belongs to
another split is dropped and the next one is drawn.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sirt_ray.errors import DataError
from sirt_ray.quickstart.wording import IN_DOMAIN, NAMES, OUT_OF_DOMAIN, Wording
from sirt_ray.types import LETTERS, Question, Split

LARGEST_RESULT = 99
"""Every step of a word problem stays within 1 .. 99: a tiny model can add two digits."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its worked solution.

    Example::

        Problem(text="Tom has 4 bags with 8 coins in each bag. Tom loses 9. "
                     "How many coins does Tom have now?",
                concept="coins", choices=(), answer="23",
                working="Tom has 4*8=32 coins. Then 32-9=23.")
    """

    text: str
    concept: str
    """The subject of the question, in one word (`question_concept` of commonsense_qa)."""
    choices: tuple[str, ...]
    answer: str
    """A number, or a choice's letter."""
    working: str
    """The chain of thought on one line, without the sentence that states the answer."""

    @property
    def answer_completion(self) -> str:
        """Completion of the plain prompt."""
        return f" The answer is {self.answer}."

    @property
    def cot_completion(self) -> str:
        """Completion of the prompt with the chain-of-thought trigger."""
        return f" {self.working}{self.answer_completion}"

    def question(self, benchmark: str = "quickstart") -> Question:
        """Return the record that `core.prompts` renders."""
        return Question("", benchmark, self.text, self.choices, self.answer)


def word_problem(rng: random.Random, wording: Wording) -> Problem:
    """Draw problems until every intermediate result of one is within the model's numbers."""
    draw = _comparison if rng.random() < 0.3 else _story
    while (drawn := draw(rng, wording)) is None:
        pass
    return drawn


def change(rng: random.Random, wording: Wording, name: str, other: str) -> tuple[str, str, int]:
    """Return one event of a story: its sentence, `+` or `-`, and the difference."""
    count = rng.randint(2, wording.largest_change)
    sign = rng.choice("+-")
    template = rng.choice(wording.gains if sign == "+" else wording.losses)
    return template.format(name=name, other=other, count=count), sign, count


def apply(before: int, sign: str, count: int) -> int | None:
    """Return `before` changed by `count`; None if the result is outside of the model's numbers."""
    after = before + count if sign == "+" else before - count
    return after if 1 <= after <= LARGEST_RESULT else None


def _story(rng: random.Random, wording: Wording) -> Problem | None:
    """Draw a story: a person has some things, then events change the number."""
    things = rng.choice(wording.things)
    name, other = rng.sample(NAMES, 2)
    num_changes = rng.choice(wording.num_changes)
    if rng.random() < 0.45:
        (box, boxes), groups, each = rng.choice(wording.boxes), rng.randint(2, 6), rng.randint(2, 9)
        have = groups * each
        sentences = [f"{name} has {groups} {boxes} with {each} {things} in each {box}."]
        steps = [f"{name} has {groups}*{each}={have} {things}."]
        num_changes -= 1
    else:
        have = rng.randint(*wording.first_counts)
        sentences = [f"{name} has {have} {things}."]
        steps = [f"{name} has {have} {things}."]
    for _ in range(num_changes):
        sentence, sign, count = change(rng, wording, name, other)
        if (after := apply(have, sign, count)) is None:
            return None
        sentences.append(sentence)
        steps.append(f"Then {have}{sign}{count}={after}.")
        have = after
    sentences.append(f"How many {things} does {name} have {wording.when}?")
    return Problem(" ".join(sentences), things, (), str(have), " ".join(steps))


def _comparison(rng: random.Random, wording: Wording) -> Problem | None:
    """Draw a comparison: a person has more or fewer things than another; how many in all?"""
    things = rng.choice(wording.things)
    name, other = rng.sample(NAMES, 2)
    have, difference = rng.randint(*wording.first_counts), rng.randint(2, 15)
    sign = rng.choice("+-")
    others = apply(have, sign, difference)
    total = None if others is None else apply(have, "+", others)
    if total is None:
        return None
    more = "more" if sign == "+" else "fewer"
    sentences = [
        f"{name} has {have} {things}.",
        f"{other} has {difference} {more} {things} than {name}.",
    ]
    steps = [
        f"{other} has {have}{sign}{difference}={others} {things}.",
        f"Together they have {have}+{others}={total} {things}.",
    ]
    if rng.random() < 0.5:
        lost = rng.randint(2, 15)
        if (left := apply(total, "-", lost)) is None:
            return None
        sentences.append(f"They lose {lost}.")
        steps.append(f"Then {total}-{lost}={left}.")
        total = left
    sentences.append(wording.total.format(things=things))
    return Problem(" ".join(sentences), things, (), str(total), " ".join(steps))


def letter_choice(rng: random.Random, wording: Wording) -> Problem:
    """Draw a question for the largest or smallest of some piles; the options are the sizes."""
    things = rng.choice(wording.things)
    sizes = rng.sample(range(2, wording.largest_pile), rng.choice(wording.num_piles))
    largest_word, smallest_word = rng.choice(wording.superlatives)
    smallest = rng.random() < 0.5
    *first, last = map(str, sizes)
    piles = f"{wording.piles.capitalize()} of {', '.join(first)} and {last} {things}."
    superlative = smallest_word if smallest else largest_word
    options = rng.sample(sizes, len(sizes))
    order = sorted(options, reverse=True)
    winner = order[-1] if smallest else order[0]
    letter = LETTERS[options.index(winner)]
    return Problem(
        text=f"{piles} Which is the {superlative}?",
        concept=things,
        choices=tuple(f"{size} {things}" for size in options),
        answer=letter,
        working=f"{size_order(options)}. The {superlative} is ({letter}).",
    )


def size_order(options: list[int]) -> str:
    """Return the options' letters and sizes, largest first."""
    by_size = sorted(zip(options, LETTERS, strict=False), reverse=True)
    return " > ".join(f"({letter}) {size}" for size, letter in by_size)


_DRAW: dict[str, tuple[Callable[[random.Random, Wording], Problem], Wording]] = {
    "word_problems": (word_problem, IN_DOMAIN),
    "word_problems_ood": (word_problem, OUT_OF_DOMAIN),
    "letter_choices": (letter_choice, IN_DOMAIN),
    "letter_choices_ood": (letter_choice, OUT_OF_DOMAIN),
}
TASKS = tuple(_DRAW)


def split_of(text: str) -> Split:
    """Return the only split in which this question may appear: of 10 hash values 8 are train, 1 is
    validation and 1 is test."""
    tenth = hashlib.sha256(text.encode()).digest()[0] % 10
    return "validation" if tenth == 0 else "test" if tenth == 1 else "train"


def problem(task: str, split: Split, index: int, seed: int) -> Problem:
    """Return the problem of one row. Raises DataError for an unknown task."""
    if task not in _DRAW:
        raise DataError(
            f"unknown quickstart task {task!r}: no generator has this name."
            f" Use one of: {', '.join(TASKS)}."
        )
    draw, wording = _DRAW[task]
    rng = random.Random(f"{task}/{split}/{seed}/{index}")
    while split_of((drawn := draw(rng, wording)).text) != split:
        pass
    return drawn


def rows(task: str, split: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows 0 .. count-1, with the columns of the benchmark that the task imitates."""
    found = [(index, problem(task, split, index, seed)) for index in range(count)]
    if task.startswith("word_problems"):
        return [
            {"question": item.text, "answer": f"{item.working}\n#### {item.answer}"}
            for _, item in found
        ]
    return [
        {
            "id": f"{task}-{split}-{seed}-{index}",
            "question": item.text,
            "question_concept": item.concept,
            "choices": {"label": list(LETTERS[: len(item.choices)]), "text": list(item.choices)},
            "answerKey": item.answer,
        }
        for index, item in found
    ]
