"""Stage 1: the demonstrations, which are the teacher's answers that the student learns from."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from sirt_ray.config.job import DemonstrationsConfig, JobConfig
from sirt_ray.types import Demonstration, Graded, Question


def keep_demonstrations(
    questions: Sequence[Question], graded: Iterable[Graded], config: DemonstrationsConfig
) -> tuple[list[Demonstration], dict[str, int]]:
    """Return at most one demonstration per question, in question order: the first completion that
    may be kept. A truncated completion is never kept, since its end would be learned as an end of
    sequence. Also return the number of questions by outcome.
    """
    by_question: dict[str, list[Graded]] = {}
    for item in graded:
        by_question.setdefault(item.completion.question_id, []).append(item)
    kept: list[Demonstration] = []
    outcomes: Counter[str] = Counter(questions=len(questions), kept=0)
    for question in questions:
        samples = sorted(
            by_question.get(question.id, []), key=lambda item: item.completion.sample_index
        )
        reasons = [_reason_to_drop(sample, config) for sample in samples]
        if None in reasons:
            kept.append(Demonstration(question, samples[reasons.index(None)]))
            outcomes["kept"] += 1
        else:
            outcomes[f"dropped_{reasons[0] if reasons else 'not_answered'}"] += 1
    return kept, dict(outcomes)


def _reason_to_drop(graded: Graded, config: DemonstrationsConfig) -> str | None:
    if graded.completion.stop_reason == "length":
        return "truncated"
    if not graded.completion.text.strip():
        return "empty"
    if config.keep == "right" and graded.verdict != "right":
        return graded.verdict
    return None


def select_for_tuning(
    demonstrations: Iterable[Demonstration], job: JobConfig
) -> list[Demonstration]:
    """Return the demonstrations that the student is tuned on: the first `tune.max_demonstrations`
    of each benchmark, among the tasks to tune on and the share of questions to learn from."""
    tasks = job.tune.tasks or job.data.train
    selected = [
        item
        for item in demonstrations
        if item.question.benchmark in tasks and in_share(item.question.id, job)
    ]
    return first_per_benchmark(selected, job.tune.max_demonstrations)


def in_share(question_id: str, job: JobConfig) -> bool:
    """Return whether a training question is in the share to learn from (`data.fraction`)."""
    if job.data.fraction == 1:
        return True
    digest = hashlib.sha256(f"share/{job.seed}/{question_id}".encode()).digest()
    return int.from_bytes(digest[:8]) < job.data.fraction * 2**64


def first_per_benchmark(
    demonstrations: Iterable[Demonstration], most: int | None
) -> list[Demonstration]:
    """Return the first `most` demonstrations of each benchmark, in order; all of them for None."""
    taken: Counter[str] = Counter()
    chosen: list[Demonstration] = []
    for item in demonstrations:
        taken[item.question.benchmark] += 1
        if most is None or taken[item.question.benchmark] <= most:
            chosen.append(item)
    return chosen


def refinement_questions(
    questions: Sequence[Question],
    demonstrations: Iterable[Demonstration],
    job: JobConfig,
) -> tuple[list[Question], dict[str, int]]:
    """Return the questions that a round samples, with the reference that decides what is right, and
    the number of training questions by the reason to leave them out.

    `ground_truth: teacher` (the paper): the demonstrated questions, graded against the teacher's
    final answer. `gold`: every training question, graded against the benchmark's. In both cases
    only those of the tasks to refine on and of the share of questions to learn from.
    """
    config = job.refine
    tasks = config.tasks or job.data.train
    of_tasks = [question for question in questions if question.benchmark in tasks]
    shared = [question for question in of_tasks if in_share(question.id, job)]
    if config.ground_truth == "gold":
        with_reference = shared
    else:
        answers: Mapping[str, str | None] = {
            item.question.id: item.graded.extracted for item in demonstrations
        }
        with_reference = [
            replace(question, reference=answer)
            for question in shared
            if (answer := answers.get(question.id)) is not None
        ]
    taken: Counter[str] = Counter()
    chosen: list[Question] = []
    for question in with_reference:
        taken[question.benchmark] += 1
        if config.max_questions is None or taken[question.benchmark] <= config.max_questions:
            chosen.append(question)
    return chosen, {
        "training_questions": len(questions),
        "of_other_tasks": len(questions) - len(of_tasks),
        "beyond_fraction": len(of_tasks) - len(shared),
        "without_teacher_answer": len(shared) - len(with_reference),
        "beyond_max_questions": len(with_reference) - len(chosen),
    }
