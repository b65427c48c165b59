"""Which teacher answers are kept, and which questions a round asks."""

from dataclasses import replace

from fakes import graded

from sirt_ray.config import DemonstrationsConfig
from sirt_ray.core.demonstrations import (
    first_per_benchmark,
    keep_demonstrations,
    refinement_questions,
)
from sirt_ray.recipes import RefineConfig
from sirt_ray.types import Demonstration, Question


def question(name: str, reference: str = "4") -> Question:
    return Question(name, name.split("/")[0], "How many?", (), reference)


QUESTIONS = [question(f"gsm8k/{i}") for i in range(6)]
ANSWERS = [
    graded("gsm8k/0", 0, verdict="wrong"),
    graded("gsm8k/0", 1, verdict="right", ids=(8, 2)),
    graded("gsm8k/1", 0, verdict="wrong"),
    graded("gsm8k/2", 0, verdict="right", stop="length"),
    graded("gsm8k/3", 0, verdict="unparseable"),
    graded("gsm8k/4", 0, verdict="unparseable", text=" "),
]


def test_right_answers_are_kept_and_every_question_has_a_fate() -> None:
    kept, fates = keep_demonstrations(QUESTIONS, ANSWERS, DemonstrationsConfig())
    assert [item.graded.completion.completion_ids for item in kept] == [(8, 2)]
    assert fates == {
        "questions": 6,
        "kept": 1,
        "dropped_wrong": 1,
        "dropped_truncated": 1,
        "dropped_unparseable": 1,
        "dropped_empty": 1,
        "dropped_not_answered": 1,
    }


def test_all_keeps_whatever_is_finished() -> None:
    kept, fates = keep_demonstrations(QUESTIONS, ANSWERS, DemonstrationsConfig(keep="all"))
    assert [item.question.id for item in kept] == ["gsm8k/0", "gsm8k/1", "gsm8k/3"]
    assert fates["dropped_truncated"] == fates["dropped_empty"] == 1


def test_the_cap_is_per_benchmark_and_keeps_the_order() -> None:
    items = [Demonstration(question(f"{b}/{i}"), graded()) for i in range(3) for b in ("x", "y")]
    chosen = [item.question.id for item in first_per_benchmark(items, 2)]
    assert chosen == ["x/0", "y/0", "x/1", "y/1"]


def test_a_round_is_judged_by_the_teachers_answers() -> None:
    answer = replace(graded("gsm8k/1"), extracted="7")
    unread = graded("gsm8k/2", verdict="unparseable")
    demonstrations = [Demonstration(QUESTIONS[1], answer), Demonstration(QUESTIONS[2], unread)]
    asked, counts = refinement_questions(QUESTIONS, demonstrations, RefineConfig())
    assert [(q.id, q.reference) for q in asked] == [("gsm8k/1", "7")]
    assert counts["without_teacher_answer"] == 5


def test_gold_judges_every_training_question() -> None:
    config = RefineConfig(ground_truth="gold", max_questions=4)
    asked, counts = refinement_questions(QUESTIONS, [], config)
    assert [q.id for q in asked] == [q.id for q in QUESTIONS[:4]]
    assert counts["beyond_max_questions"] == 2
