"""Stage 1: which of the teacher's answers the student learns from."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from sirt_ray.config.job import DemonstrationsConfig, JobConfig
from sirt_ray.types import Demonstration, Graded, Question


def keep_demonstrations(
    questions: Sequence[Question], graded: Iterable[Graded], config: DemonstrationsConfig
) -> tuple[list[Demonstration], dict[str, int]]:
    """One demonstration per question at most, in question order: the first completion that may be
    kept. A completion that was cut off is never kept, since its end would be learned as an end.

    Returns the demonstrations and the number of questions by what became of them.
    """
    by_question: dict[str, list[Graded]] = {}
    for item in graded:
        by_question.setdefault(item.completion.question_id, []).append(item)
    kept: list[Demonstration] = []
    fate: Counter[str] = Counter(questions=len(questions), kept=0)
    for question in questions:
        samples = sorted(
            by_question.get(question.id, []), key=lambda item: item.completion.sample_index
        )
        reasons = [_reason_to_drop(sample, config) for sample in samples]
        if None in reasons:
            kept.append(Demonstration(question, samples[reasons.index(None)]))
            fate["kept"] += 1
        else:
            fate[f"dropped_{reasons[0] if reasons else 'not_answered'}"] += 1
    return kept, dict(fate)


def _reason_to_drop(graded: Graded, config: DemonstrationsConfig) -> str | None:
    if graded.completion.stop_reason == "length":
        return "truncated"
    if not graded.completion.text.strip():
        return "empty"
    if config.keep == "right" and graded.verdict != "right":
        return graded.verdict
    return None


def to_tune_on(demonstrations: Iterable[Demonstration], job: JobConfig) -> list[Demonstration]:
    """The demonstrations that the student is tuned on: of the tasks to tune on and of the share of
    questions to learn from, the first `tune.max_demonstrations` of each benchmark."""
    tasks = job.tune.tasks or job.data.train
    asked = [
        item
        for item in demonstrations
        if item.question.benchmark in tasks and in_share(item.question.id, job)
    ]
    return first_per_benchmark(asked, job.tune.max_demonstrations)


def in_share(question_id: str, job: JobConfig) -> bool:
    """Whether a training question is one of those to learn from (`data.fraction`)."""
    if job.data.fraction == 1:
        return True
    digest = hashlib.sha256(f"share/{job.seed}/{question_id}".encode()).digest()
    return int.from_bytes(digest[:8]) < job.data.fraction * 2**64


def first_per_benchmark(
    demonstrations: Iterable[Demonstration], most: int | None
) -> list[Demonstration]:
    """The first `most` demonstrations of each benchmark, in order; all of them for None."""
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
    """The questions that a round samples, with the reference that decides what is right.

    `ground_truth: teacher` (the paper): the demonstrated questions, judged by the teacher's final
    answer. `gold`: every training question, judged by the benchmark's. In both cases those of the
    tasks to refine on and of the share of questions to learn from.
    """
    config = job.refine
    tasks = config.tasks or job.data.train
    of_tasks = [question for question in questions if question.benchmark in tasks]
    shared = [question for question in of_tasks if in_share(question.id, job)]
    if config.ground_truth == "gold":
        judged = shared
    else:
        answers: Mapping[str, str | None] = {
            item.question.id: item.graded.extracted for item in demonstrations
        }
        judged = [
            replace(question, reference=answer)
            for question in shared
            if (answer := answers.get(question.id)) is not None
        ]
    taken: Counter[str] = Counter()
    chosen: list[Question] = []
    for question in judged:
        taken[question.benchmark] += 1
        if config.max_questions is None or taken[question.benchmark] <= config.max_questions:
            chosen.append(question)
    return chosen, {
        "training_questions": len(questions),
        "of_other_tasks": len(questions) - len(of_tasks),
        "beyond_fraction": len(of_tasks) - len(shared),
        "without_teacher_answer": len(shared) - len(judged),
        "beyond_max_questions": len(judged) - len(chosen),
    }
