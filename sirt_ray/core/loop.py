"""The whole method. Read this file first.

    demonstrations = the teacher's right answers to the training questions, with the trigger
    student_0      = instruction tuning(base, demonstrations)
    for round r = 1 .. R:
        samples_r   = CoT-Answers and Answers of student_{r-1}, graded
        pairs_r     = (chosen, rejected) by the pair rule
        candidate_r = DPO(student_{r-1}, pairs_r), reference = student_{r-1}, or student_0 where
                      the job says `refine.reference: initial`
        student_r   = candidate_r, or student_{r-1} where held-out accuracy fell beyond its noise

Self-refine Instruction-tuning, Ranaldi and Freitas, EMNLP 2024, sections 2.1 and 2.2. The paper
runs one round; rounds and roll-back are ours. Every line above is one artifact, and the same job
again builds only what is missing: a run that was killed resumes.

Other methods (`methods.py`) go through the same lines: without tuning (`tune.skip`) student_0 is
the base; a round may train the base anew in place of student_{r-1} (`refine.start`), imitate what
is chosen in place of comparing (`refine.loss: rft`, which has no reference), and every second round
may be of another kind (`refine.even_rounds`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sirt_ray.artifacts.store import Artifact, Store
from sirt_ray.config.job import JobConfig
from sirt_ray.core import fingerprints
from sirt_ray.core.interfaces import Journal, Policy, Stages
from sirt_ray.core.scoring import Evaluation, dropped_significantly, read_evaluation
from sirt_ray.types import Scores


@dataclass(frozen=True, slots=True)
class Outcome:
    student: Policy
    """The student that was kept last."""
    scores: Mapping[str, Scores]
    """Stage -> scores on the test questions."""
    rolled_back: tuple[str, ...]
    """Rounds whose candidate was not kept."""


@dataclass(frozen=True, slots=True)
class _Student:
    policy: Policy
    weights: Artifact | str
    """What the run has made, or the content of the base."""


@dataclass(frozen=True, slots=True)
class Loop:
    """The method over one job. `run` is the only entry."""

    job: JobConfig
    stages: Stages
    store: Store
    journal: Journal

    def run(self) -> Outcome:
        """Run the job, or what is left of it."""
        job, stages, store = self.job, self.stages, self.store
        teacher = Policy("teacher", job.teacher.source, job.teacher.revision)
        base = Policy("baseline", job.student.model, job.student.revision)
        teacher_id = stages.teacher_identity()
        base_id = stages.identity(base.path, base.revision)

        questions = store.once(
            "questions", fingerprints.questions(job, stages.rows_identity()), stages.questions
        )
        demonstrations = store.once(
            "demonstrations",
            fingerprints.demonstrations(job, teacher_id, questions),
            lambda out: stages.demonstrate(out, teacher, questions),
        )
        scores: dict[str, Scores] = {}
        if job.evaluation.teacher and job.teacher.answers:
            scores["teacher"] = self._evaluate(teacher, teacher_id, questions).test
        elif job.evaluation.teacher:
            self._say_teacher_absent()
        untuned = student = initial = _Student(base, base_id)
        kept = self._evaluate(base, base_id, questions)
        scores[base.version] = kept.test

        if not job.tune.skip:
            weights = store.once(
                "round_00/student",
                fingerprints.tuned(job, base_id, demonstrations),
                lambda out: stages.tune(out, base, demonstrations),
            )
            self._say_warnings(weights)
            student = initial = _student(weights, 0)
            kept = self._evaluate(student.policy, weights, questions)
            scores[student.policy.version] = kept.test

        rolled_back: list[str] = []
        for round in range(1, job.refine.rounds + 1):
            refine = job.refine.of_round(round)
            start = untuned if refine.start == "base" else student
            reference = initial if refine.reference == "initial" else student
            refined = self._refine(round, student, start, reference, questions, demonstrations)
            self._say_warnings(refined)
            candidate = _student(refined, round)
            found = self._evaluate(candidate.policy, refined, questions)
            scores[candidate.policy.version] = found.test
            if refine.roll_back and dropped_significantly(
                kept.held_out, found.held_out, refine.roll_back_stderrs
            ):
                rolled_back.append(candidate.policy.version)
                self._say_rolled_back(candidate.policy, student.policy, kept, found)
            else:
                student, kept = candidate, found
        return Outcome(student.policy, scores, tuple(rolled_back))

    def _refine(
        self,
        round: int,
        student: _Student,
        start: _Student,
        reference: _Student,
        questions: Artifact,
        demonstrations: Artifact,
    ) -> Artifact:
        """One round: the student samples, its answers are paired and scored by the reference, and
        `start` is trained on them. Returns the candidate's weights."""
        job, stages, once = self.job.at_round(round), self.stages, self.store.once
        at = f"round_{round:02d}"
        samples = once(
            f"{at}/samples",
            fingerprints.samples(job, student.weights, questions, demonstrations),
            lambda out: stages.sample(out, student.policy, questions, demonstrations, round),
        )
        pairs = once(
            f"{at}/pairs",
            fingerprints.pairs(job, samples, demonstrations),
            lambda out: stages.pair(out, samples, demonstrations, round),
        )
        logps = None
        if job.refine.needs_reference:
            logps = once(
                f"{at}/reference",
                fingerprints.reference(job, reference.weights, pairs),
                lambda out: stages.reference(out, reference.policy, pairs, round),
            )
        return once(
            f"{at}/student",
            fingerprints.refined(job, start.weights, pairs, logps),
            lambda out: stages.refine(out, start.policy, reference.policy, pairs, logps, round),
        )

    def _evaluate(self, policy: Policy, model: Artifact | str, questions: Artifact) -> Evaluation:
        evaluation = read_evaluation(
            self.store.once(
                f"{policy.version}/evaluation",
                fingerprints.evaluation(self.job, model, questions),
                lambda out: self.stages.evaluate(out, policy, questions),
            ).counts,
            self.job.in_domain,
        )
        self.journal.scores(policy.version, evaluation.test)
        return evaluation

    def _say_warnings(self, trained: Artifact) -> None:
        """What the training noticed about itself; it stands in the artifact's counts."""
        for warning in trained.counts.get("warnings", ()):
            self.journal.event(
                warning["name"],
                f"{trained.name}, step {warning['step']}: {warning['message']}",
                artifact=trained.name,
                step=warning["step"],
            )

    def _say_teacher_absent(self) -> None:
        self.journal.event(
            "teacher_not_evaluated",
            "the teacher is a file of demonstrations, which cannot be asked the test questions:"
            " there will be no scores of a teacher. `evaluation.teacher: false` says the same"
            " without this line",
        )

    def _say_rolled_back(
        self, candidate: Policy, student: Policy, before: Evaluation, after: Evaluation
    ) -> None:
        old, new = before.held_out, after.held_out
        self.journal.event(
            "rolled_back",
            f"{candidate.version} is rolled back to {student.version}: held-out accuracy fell from"
            f" {old.accuracy:.1%} to {new.accuracy:.1%} on {new.n} questions, beyond its noise."
            " `refine.roll_back: false` keeps it anyway",
            version=candidate.version,
            kept=student.version,
        )


def _student(weights: Artifact, round: int) -> _Student:
    return _Student(Policy(f"round_{round:02d}", weights.place), weights)
