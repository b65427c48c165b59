"""The whole method. Read this file first.

    demonstrations = the teacher's right answers to the training questions, with the trigger
    student_0      = instruction tuning(base, demonstrations)
    for round r = 1 .. R:
        samples_r   = CoT-Answers and Answers of student_{r-1}, graded
        pairs_r     = (chosen, rejected) by the pair rule
        candidate_r = DPO(student_{r-1}, pairs_r), reference = student_{r-1}
        student_r   = candidate_r, or student_{r-1} if held-out accuracy fell beyond its noise

Self-refine Instruction-tuning, Ranaldi and Freitas, EMNLP 2024, sections 2.1 and 2.2. The paper
runs one round; rounds and roll-back are additions of this project. Every line above is one
artifact (`core/steps.py`), and the same job again builds only what is missing: a run that was
killed resumes.

Other methods (`config/presets.py`) are the same lines under other settings: without tuning
(`tune.skip`) student_0 is the base; a round may train the base anew in place of student_{r-1}
(`refine.start`), keep student_0 as its reference (`refine.reference`), or imitate what is chosen in
place of comparing it (`refine.loss: rft`, which has no reference); every second round may be of
another kind (`refine.even_rounds`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sirt_ray.artifacts.store import Artifact
from sirt_ray.config.job import JobConfig
from sirt_ray.core import steps
from sirt_ray.core.interfaces import Identities, Model, Observer, Policy, ReferenceLogps
from sirt_ray.core.scoring import Evaluation, keeps, read_evaluation
from sirt_ray.core.steps import Step
from sirt_ray.types import Scores


@dataclass(frozen=True, slots=True)
class Outcome:
    student: Policy
    """The student that was kept last."""
    scores: Mapping[str, Scores]
    """Stage -> scores on the test questions, as far as they are known."""
    rolled_back: tuple[str, ...]
    """Rounds whose candidate was not kept."""


def self_refine(
    job: JobConfig,
    identities: Identities,
    build: Callable[[Step], Artifact],
    observer: Observer | None = None,
) -> Outcome:
    """Run the job, or what is left of it. `build` turns each step into its artifact (see
    `steps.builder`); a dry run's leaves the scores of what is missing unknown, and plans the rounds
    behind it as kept."""
    observer = observer or Observer()
    teacher, base = identities.teacher(), identities.base()
    scores: dict[str, Scores] = {}
    rolled_back: list[str] = []

    questions = build(steps.questions(job, identities.rows()))
    demonstrations = build(steps.demonstrations(job, teacher, questions))

    def evaluate(model: Model) -> Evaluation | None:
        counts = build(steps.evaluation(job, model, questions)).counts
        if counts is None:
            return None
        evaluation = read_evaluation(counts, job.in_domain)
        scores[model.version] = evaluation.test
        observer.evaluated(model.version, evaluation.test)
        return evaluation

    if job.evaluation.teacher and job.teacher.answers:
        evaluate(teacher)
    student, best = base, evaluate(base)
    if not job.tune.skip:
        student = _student(0, build(steps.tuned(job, base, demonstrations)), observer)
        best = evaluate(student)
    initial = student

    for number, settings in enumerate(job.rounds, start=1):
        samples = build(steps.samples(settings, number, student, questions, demonstrations))
        pairs = build(steps.pairs(settings, number, samples, demonstrations))
        reference = None
        if settings.refine.needs_reference:
            policy = initial if settings.refine.reference == "initial" else student
            logps = build(steps.reference_logps(settings, number, policy, pairs))
            reference = ReferenceLogps(policy, logps)
        start = base if settings.refine.start == "base" else student
        weights = build(steps.refined(settings, number, start, pairs, reference))
        candidate = _student(number, weights, observer)
        evaluation = evaluate(candidate)
        if keeps(best, evaluation, settings.refine):
            student, best = candidate, evaluation
        else:
            rolled_back.append(candidate.version)
            observer.rolled_back(candidate.version, student.version, best, evaluation)
    return Outcome(student.policy, scores, tuple(rolled_back))


def _student(number: int, weights: Artifact, observer: Observer) -> Model:
    observer.trained(weights)
    return Model(Policy(f"round_{number:02d}", weights.uri), weights)
