"""The real steps of the method: the composition root that hands Ray to `core/loop.py`.

The student's engine stays up from the baseline to the last round and takes new weights while it
runs; the teacher's ends with its last stage.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sirt_ray.artifacts import parquet
from sirt_ray.artifacts.store import Artifact
from sirt_ray.benchmarks import answer_file
from sirt_ray.benchmarks.registry import grade_of
from sirt_ray.config.job import JobConfig
from sirt_ray.config.teacher import DemonstrationFileConfig
from sirt_ray.core import demonstrations as demonstrating
from sirt_ray.core.interfaces import Counts, Policy, Progress
from sirt_ray.errors import StageError
from sirt_ray.on_ray.data import read
from sirt_ray.on_ray.engine.weights import located
from sirt_ray.on_ray.sampling import pairs as pairing
from sirt_ray.on_ray.sampling.evaluate import evaluate
from sirt_ray.on_ray.sampling.pool import Engines, Role
from sirt_ray.on_ray.sampling.prompts import Prompter, TextPrompter, TokenPrompter
from sirt_ray.on_ray.sampling.worker import SamplingPlan
from sirt_ray.on_ray.training import trainer
from sirt_ray.quickstart import assets
from sirt_ray.storage import object_store
from sirt_ray.storage.hashing import model_key
from sirt_ray.training.tasks import Source
from sirt_ray.types import Demonstration, Graded, PromptKind, Question, Split


class RayStages:
    """`core.interfaces.Stages` on Ray Data, Ray Serve and Ray Train."""

    def __init__(
        self,
        job: JobConfig,
        run_dir: Path,
        progress: Progress,
        after: "RayStages | None" = None,
    ) -> None:
        """`after`: the stages of a job that has ended on the same cluster, whose engines may go on
        running; they are not to be used any more."""
        self._job = job
        self._progress = progress
        engines = Engines(job, run_dir)
        self._engines = engines if after is None else after._engines.hand_over(engines)

    def check_cluster(self) -> None:
        """Raise ResourceError for all that the job asks for and the cluster can never give."""
        self._engines.check_cluster()

    def close(self) -> None:
        """Stop the engines."""
        self._engines.close()

    # What a model and the rows are

    def identity(self, model: str, revision: str | None) -> str:
        return model_key(str(assets.resolve(model)), revision)

    def teacher_identity(self) -> str:
        teacher = self._job.teacher
        if teacher.endpoint is not None:
            return teacher.endpoint.identity
        if teacher.demonstrations is not None:
            return answer_file.identity(teacher.demonstrations)
        return self.identity(teacher.source, teacher.revision)

    def rows_identity(self) -> Mapping[str, str]:
        return read.rows_identity(self._job.data)

    # Stage 1

    def questions(self, out: Path) -> Counts:
        return read.prepare_questions(out, self._job.data, self._job.seed, self._progress)

    def demonstrate(self, out: Path, teacher: Policy, questions: Artifact) -> Counts:
        if self._job.teacher.demonstrations is not None:
            return self._demonstrate_from_file(out, self._job.teacher.demonstrations, questions)
        config, student = self._job.demonstrations, self._job.student
        asked = self._questions(questions, "train")
        self._engines.start(teacher, Policy("baseline", student.model, student.revision))
        sampled = self._sample(
            out / "completions",
            "teacher",
            teacher,
            asked,
            SamplingPlan(
                {"cot": config.samples_per_question}, self._job.teacher.sampling, self._job.seed
            ),
            "demonstrations",
        )
        graded = parquet.records(Graded, out / "completions")
        return {**self._keep(out, asked, graded), "sampling": sampled}

    def _demonstrate_from_file(
        self, out: Path, config: DemonstrationFileConfig, questions: Artifact
    ) -> Counts:
        asked, held_out = (self._questions(questions, split) for split in ("train", "validation"))
        found = answer_file.read_answers(config, asked, held_out, grade_of(self._job.data))
        # In the place and the columns of a teacher's completions: all of them, kept or not.
        parquet.write(
            out / "completions" / "part-000000.parquet",
            map(parquet.to_row, found.graded),
            parquet.GRADED,
            found.counts,
        )
        return {**self._keep(out, asked, found.graded), "file": found.counts}

    def _keep(
        self, out: Path, asked: Sequence[Question], graded: Iterable[Graded]
    ) -> Mapping[str, int]:
        """Write the demonstrations that may be learned from; what became of each question."""
        kept, fates = demonstrating.keep_demonstrations(asked, graded, self._job.demonstrations)
        if not kept:
            raise StageError(
                f"none of the teacher's answers to {len(asked)} questions can be learned from"
                f" ({', '.join(f'{fate} {n}' for fate, n in fates.items() if n)}). Look at the"
                f" texts in {out / 'completions'}. A larger teacher.sampling.max_tokens helps"
                " against truncated ones, demonstrations.keep: all keeps the wrong ones"
            )
        parquet.write(
            out / "demonstrations.parquet",
            map(parquet.to_row, kept),
            parquet.DEMONSTRATION,
            fates,
        )
        return fates

    def tune(self, out: Path, base: Policy, demonstrations: Artifact) -> Counts:
        job = self._job
        stored = parquet.records(Demonstration, demonstrations.fetched())
        kept = demonstrating.select_for_tuning(stored, job)
        if not kept:
            raise StageError(
                "no demonstration is left to tune on. Widen tune.tasks or data.fraction, or look"
                f" at what the teacher wrote in {demonstrations.path}"
            )
        used = out / ".work" / "demonstrations.parquet"
        parquet.write(used, map(parquet.to_row, kept), parquet.DEMONSTRATION)
        object_store.push(used)
        self._engines.free_resources_for_training()
        return trainer.tune(
            out,
            base=_source(base),
            demonstrations=used,
            config=job.tune,
            resources=job.resources.trainer,
            seed=job.seed,
            name="round_00/student",
            progress=self._progress,
        )

    # Stage 3

    def sample(
        self, out: Path, student: Policy, questions: Artifact, demonstrations: Artifact, round: int
    ) -> Counts:
        job = self._job.at_round(round)
        refine = job.refine
        asked, fates = demonstrating.refinement_questions(
            self._questions(questions, "train"),
            parquet.records(Demonstration, demonstrations.fetched()),
            job,
        )
        completions: dict[PromptKind, int] = {"cot": refine.num_cot, "plain": refine.num_plain}
        sampled = self._sample(
            out,
            "student",
            student,
            asked,
            SamplingPlan(
                {kind: n for kind, n in completions.items() if n}, refine.sampling, job.seed
            ),
            f"round_{round:02d}/samples",
        )
        return {**fates, **sampled}

    def pair(self, out: Path, samples: Artifact, demonstrations: Artifact, round: int) -> Counts:
        return pairing.pair(out, self._job.at_round(round), samples, demonstrations, round)

    def reference(self, out: Path, reference: Policy, pairs: Artifact, round: int) -> Counts:
        self._engines.free_resources_for_training()
        return trainer.reference_logps(
            out,
            student=_source(reference),
            pairs=pairs.path,
            config=self._job.refine.of_round(round),
            resources=self._job.resources.trainer,
            name=f"round_{round:02d}/reference",
            progress=self._progress,
        )

    def refine(
        self,
        out: Path,
        start: Policy,
        reference: Policy,
        pairs: Artifact,
        logps: Artifact | None,
        round: int,
    ) -> Counts:
        self._engines.free_resources_for_training()
        return trainer.refine(
            out,
            student=_source(start),
            pairs=pairs.path,
            reference=None if logps is None else logps.path,
            reference_student=None if logps is None else _source(reference),
            config=self._job.refine.of_round(round),
            resources=self._job.resources.trainer,
            seed=self._job.seed + round,
            name=f"round_{round:02d}/student",
            progress=self._progress,
        )

    # Stage 4

    def evaluate(self, out: Path, policy: Policy, questions: Artifact) -> Counts:
        """Test questions, and of a student validation questions."""
        role: Role = "teacher" if policy.version == "teacher" else "student"
        splits: dict[Split, list[Question]] = {"test": self._questions(questions, "test")}
        if role == "student":
            splits["validation"] = self._questions(questions, "validation")

        def sample(questions: Sequence[Question], plan: SamplingPlan) -> Counts:
            return self._sample(out, role, policy, questions, plan, f"{policy.version}/evaluation")

        evaluation = self._job.evaluation
        return evaluate(
            out, splits, evaluation.prompts, evaluation.sampling, self._job.seed, sample
        )

    # What the steps share

    def _questions(self, questions: Artifact, split: Split) -> list[Question]:
        """The split's questions of every benchmark that has it, in the job's order."""
        names = self._job.data.evaluate if split == "test" else self._job.data.train
        return read.read_questions(questions.fetched(), names, split)

    def _sample(
        self,
        out: Path,
        role: Role,
        policy: Policy,
        questions: Sequence[Question],
        plan: SamplingPlan,
        name: str,
    ) -> Counts:
        return self._engines.serve(role, policy).sample(
            questions,
            plan,
            self._prompter(role, policy),
            grade_of(self._job.data),
            out=out,
            block_size=self._job.resources.block_size,
            name=name,
            progress=self._progress,
        )

    def _prompter(self, role: Role, policy: Policy) -> Prompter:
        endpoint = self._job.teacher.endpoint
        if role == "teacher" and endpoint is not None:
            return TextPrompter(endpoint.api)
        # Brings torch with it, which planning a run does not need.
        from sirt_ray.training.model import load_tokenizer

        return TokenPrompter(load_tokenizer(located(_source(policy), weights=False)))


def _source(policy: Policy) -> Source:
    return Source(str(assets.resolve(policy.path)), policy.revision)
