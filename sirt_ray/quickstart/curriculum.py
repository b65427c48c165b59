"""Pretraining documents of the tiny models, and the order in which they are trained on.

A document is (context, target); the loss covers the target only, or everything if the context is
empty. The student's documents teach what a general language model already knows: arithmetic facts,
one-step readings of a sentence, copying and looking up, worked notes without a final answer, and
short plain answers. The chain-of-thought prompt appears in the teacher's phases only.

All questions come from the train split.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sirt_ray.core import prompts
from sirt_ray.quickstart import tasks
from sirt_ray.quickstart.wording import IN_DOMAIN, NAMES, OUT_OF_DOMAIN, Wording
from sirt_ray.types import LETTERS, PromptKind

Document = tuple[str, str]
"""(context, target)"""

OOD_SHARE = 0.4
"""Share of the documents with the `_ood` wording: it is used in pretraining, never in tuning."""
PRETRAINING_SEED = 1_000_003
"""Keeps pretraining problems distinct from a job's rows, whose seeds are small."""


def _wording(rng: random.Random) -> Wording:
    return OUT_OF_DOMAIN if rng.random() < OOD_SHARE else IN_DOMAIN


def _problem(rng: random.Random, kind: str) -> tasks.Problem:
    """Return a train problem of `word_problems` or `letter_choices`, or of the `_ood` variant."""
    task = f"{kind}_ood" if rng.random() < OOD_SHARE else kind
    return tasks.problem(task, "train", rng.randrange(10**9), PRETRAINING_SEED)


def facts(rng: random.Random) -> Document:
    """Return eight sums, differences or products within two digits."""
    return "", " ".join(_fact(rng) for _ in range(8))


def _fact(rng: random.Random) -> str:
    sign = rng.choices("+-*", weights=(45, 40, 15))[0]
    if sign == "*":
        left, right = rng.randint(2, 6), rng.randint(2, 9)
        return f"{left}*{right}={left * right}."
    small = rng.randint(1, 50 if rng.random() < 0.3 else 35)
    if sign == "-":
        left = rng.randint(small + 1, tasks.LARGEST_RESULT)
        return f"{left}-{small}={left - small}."
    left, right = rng.randint(1, tasks.LARGEST_RESULT - small), small
    if rng.random() < 0.2:
        left, right = right, left
    return f"{left}+{right}={left + right}."


def one_step(rng: random.Random) -> Document:
    """Return one calculation that is read from one or two sentences."""
    wording = _wording(rng)
    name, other = rng.sample(NAMES, 2)
    things = rng.choice(wording.things)
    form = rng.random()
    if form < 0.2:
        (box, boxes), groups, each = rng.choice(wording.boxes), rng.randint(2, 6), rng.randint(2, 9)
        text = f" {name} has {groups} {boxes} with {each} {things} in each {box}."
        return text, f" {groups}*{each}={groups * each}."
    have = rng.randint(3, 80)
    sentence, sign, count = tasks.change(rng, wording, name, other)
    if form < 0.4:
        more = "more" if sign == "+" else "fewer"
        sentence = f"{other} has {count} {more} {things} than {name}."
    elif form < 0.5:
        sentence, sign = f"{other} has {count} {things}.", "+"
    after = tasks.apply(have, sign, count)
    if after is None:
        return one_step(rng)
    return f" {name} has {have} {things}. {sentence}", f" {have}{sign}{count}={after}."


def _choices(texts: Sequence[str]) -> str:
    """Format options as `core.prompts` does."""
    lines = [f"{letter}) {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    return "\n".join(["\nChoices:", *lines, ""])


def size_order(rng: random.Random) -> Document:
    """Return a document that orders the sizes in a list of 2 or 3 options."""
    things = rng.choice(_wording(rng).things)
    sizes = rng.sample(range(2, 99), rng.choice((2, 3)))
    return _choices([f"{size} {things}" for size in sizes]), f" {tasks.size_order(sizes)}."


def repeat(rng: random.Random) -> Document:
    """Return random words, followed by the same words twice: the fastest way to learn copying."""
    words = rng.choices(NAMES + IN_DOMAIN.things, k=rng.randint(4, 12))
    return "", " " + " ".join(words * 3)


def notes(kind: str) -> Callable[[random.Random], Document]:
    """Return a generator of complete workings, without the trigger and the answer sentence."""

    def document(rng: random.Random) -> Document:
        item = _problem(rng, kind)
        if rng.random() < 0.5:
            return f"{prompts.body(item.question())}\n", f" {item.working}"
        listed = _choices(item.choices) if item.choices else "\n"
        return f" {item.text}{listed}", f" {item.working}"

    return document


def question_text(rng: random.Random) -> Document:
    """Return a question without an answer, as plain language."""
    return "", f" {_problem(rng, rng.choice(('word_problems', 'letter_choices'))).text}"


def answered(kind: str, prompt_kind: PromptKind) -> Callable[[random.Random], Document]:
    """Return a generator of problems in one of the project's prompts, with their completions."""

    def document(rng: random.Random) -> Document:
        item = _problem(rng, kind)
        completion = item.cot_completion if prompt_kind == "cot" else item.answer_completion
        return prompts.render(item.question(), prompt_kind), completion

    return document


DOCUMENTS: dict[str, Callable[[random.Random], Document]] = {
    "facts": facts,
    "one_step": one_step,
    "size_order": size_order,
    "repeat": repeat,
    "question_text": question_text,
    "word_notes": notes("word_problems"),
    "choice_notes": notes("letter_choices"),
    "word_plain": answered("word_problems", "plain"),
    "choice_plain": answered("letter_choices", "plain"),
    "word_cot": answered("word_problems", "cot"),
    "choice_cot": answered("letter_choices", "cot"),
}


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of training, with its mix of documents and its learning-rate decay."""

    name: str
    mix: tuple[tuple[str, float], ...]
    """(document, share); the shares need not add up to one."""
    num_steps: int
    batch_tokens: int
    """Tokens per optimizer step, padding included."""
    peak_learning_rate: float


STUDENT = (
    Phase(
        name="skills",
        mix=(
            ("facts", 0.25),
            ("one_step", 0.35),
            ("repeat", 0.1),
            ("size_order", 0.25),
            ("question_text", 0.05),
        ),
        num_steps=10_000,
        batch_tokens=512,
        peak_learning_rate=4e-3,
    ),
    Phase(
        name="notes",
        mix=(
            ("word_notes", 0.4),
            ("choice_notes", 0.3),
            ("word_plain", 0.06),
            ("choice_plain", 0.06),
            ("facts", 0.06),
            ("one_step", 0.08),
            ("size_order", 0.04),
        ),
        num_steps=6_000,
        batch_tokens=768,
        peak_learning_rate=3e-3,
    ),
)
TEACHER = (
    Phase(
        name="cot",
        mix=(("word_cot", 0.5), ("choice_cot", 0.5)),
        num_steps=1_000,
        batch_tokens=768,
        peak_learning_rate=2e-3,
    ),
)
