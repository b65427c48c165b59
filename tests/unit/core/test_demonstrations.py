"""Which teacher answers are kept, and which questions a round asks."""

from dataclasses import replace

from sirt_ray.config.job import DemonstrationsConfig
from sirt_ray.core.demonstrations import (
    first_per_benchmark,
    keep_demonstrations,
    refinement_questions,
    select_for_tuning,
)
from sirt_ray.types import Demonstration, Question
from tests.helpers.fakes import graded, job


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
    asked, counts = refinement_questions(QUESTIONS, demonstrations, job())
    assert [(q.id, q.reference) for q in asked] == [("gsm8k/1", "7")]
    assert counts["without_teacher_answer"] == 5


def test_gold_judges_every_training_question() -> None:
    gold = job(refine={"ground_truth": "gold", "max_questions": 4})
    asked, counts = refinement_questions(QUESTIONS, [], gold)
    assert [q.id for q in asked] == [q.id for q in QUESTIONS[:4]]
    assert counts["beyond_max_questions"] == 2


def test_a_round_asks_the_tasks_to_refine_on_and_tuning_shows_its_own() -> None:
    both = {"train": ["gsm8k", "math"], "evaluate": ["gsm8k"]}
    crossed = job(data=both, tune={"tasks": ["gsm8k"]}, refine={"tasks": ["math"]})
    questions = [*QUESTIONS, question("math/0"), question("math/1")]
    items = [Demonstration(q, graded(q.id)) for q in questions]
    assert {item.question.benchmark for item in select_for_tuning(items, crossed)} == {"gsm8k"}
    asked, counts = refinement_questions(questions, items, crossed)
    assert [q.id for q in asked] == ["math/0", "math/1"]
    assert counts["of_other_tasks"] == 6


def test_a_smaller_share_of_the_questions_lies_within_a_larger_one() -> None:
    questions = [question(f"gsm8k/{i}") for i in range(400)]
    items = [Demonstration(q, graded(q.id)) for q in questions]

    def shares(fraction: float) -> tuple[set[str], set[str]]:
        data = {"train": ["gsm8k"], "evaluate": ["gsm8k"], "fraction": fraction}
        some = job(data=data, refine={"ground_truth": "gold"})
        asked, counts = refinement_questions(questions, items, some)
        assert counts["beyond_fraction"] == 400 - len(asked)
        return {item.question.id for item in select_for_tuning(items, some)}, {q.id for q in asked}

    (quarter, quarter_asked), (half, half_asked) = shares(0.25), shares(0.5)
    assert quarter < half and (quarter_asked, half_asked) == (quarter, half)
    assert 60 < len(quarter) < 140 and 160 < len(half) < 240
    assert len(shares(1.0)[0]) == 400
