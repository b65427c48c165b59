"""The stages of the method on Ray: the composition root that `core/loop.py` is run with.

The student's engine stays up from the baseline to the last round and takes new weights while it
runs; the teacher's ends with its last stage.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sirt_ray.artifacts import parquet
from sirt_ray.artifacts.store import Artifact
from sirt_ray.benchmarks import answer_file
from sirt_ray.benchmarks.registry import grade_of
from sirt_ray.config.job import JobConfig
from sirt_ray.config.teacher import DemonstrationFileConfig
from sirt_ray.core import demonstrations as demonstrating
from sirt_ray.core.interfaces import (
    Counts,
    FilteredDemonstrations,
    Model,
    Policy,
    Progress,
    ReferenceLogps,
)
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
from sirt_ray.training.tasks import ReferenceTask, RefineTask, Source, TuneTask
from sirt_ray.types import Demonstration, Graded, PromptKind, Question, Split


class JobIdentities:
    """`core.interfaces.Identities` of a job: hashes of its models and rows, wherever they are."""

    def __init__(self, job: JobConfig) -> None:
        self._job = job

    def teacher(self) -> Model:
        teacher = self._job.teacher
        if teacher.endpoint is not None:
            content = teacher.endpoint.identity
        elif teacher.demonstrations is not None:
            content = answer_file.identity(teacher.demonstrations)
        else:
            content = _content(teacher.source, teacher.revision)
        return Model(Policy("teacher", teacher.source, teacher.revision), content)

    def base(self) -> Model:
        return Model(
            _base(self._job), _content(self._job.student.model, self._job.student.revision)
        )

    def rows(self) -> Mapping[str, str]:
        return read.rows_identity(self._job.data)


class RayStages:
    """`core.interfaces.Stages` on Ray Data, Ray Serve and Ray Train."""

    def __init__(
        self,
        job: JobConfig,
        run_dir: Path,
        progress: Progress,
        previous: "RayStages | None" = None,
    ) -> None:
        """`previous`: the stages of a job that has ended on the same cluster; its engines go on
        running if this job would start the same ones, and it must not be used any more."""
        self._job = job
        self._progress = progress
        engines = Engines(job, run_dir)
        self._engines = engines if previous is None else previous._engines.hand_over(engines)

    def check_cluster(self) -> None:
        """Raise ResourceError for all that the job requests and the cluster can never give."""
        self._engines.check_cluster()

    def close(self) -> None:
        """Stop the engines."""
        self._engines.close()

    # Stage 1

    def questions(self, out: Path) -> Counts:
        return read.prepare_questions(out, self._job.data, self._job.seed, self._progress)

    def demonstrate(self, out: Path, *, teacher: Model, questions: Artifact) -> Counts:
        if self._job.teacher.demonstrations is not None:
            return self._demonstrate_from_file(out, self._job.teacher.demonstrations, questions)
        config = self._job.demonstrations
        train = self._questions(questions, "train")
        self._engines.start(teacher.policy, _base(self._job))
        sampled = self._sample(
            out / "completions",
            "teacher",
            teacher.policy,
            train,
            SamplingPlan(
                {"cot": config.samples_per_question}, self._job.teacher.sampling, self._job.seed
            ),
            "demonstrations",
        )
        graded = parquet.records(Graded, out / "completions")
        return {**self._keep(out, train, graded), "sampling": sampled}

    def _demonstrate_from_file(
        self, out: Path, config: DemonstrationFileConfig, questions: Artifact
    ) -> Counts:
        train, held_out = (self._questions(questions, split) for split in ("train", "validation"))
        found = answer_file.read_answers(config, train, held_out, grade_of(self._job.data))
        # All of them, kept or not, in the same files and columns as a teacher's completions.
        parquet.write(
            out / "completions" / "part-000000.parquet",
            map(parquet.to_row, found.graded),
            parquet.GRADED,
            found.counts,
        )
        return {**self._keep(out, train, found.graded), "file": found.counts}

    def _keep(
        self, out: Path, questions: Sequence[Question], graded: Iterable[Graded]
    ) -> Mapping[str, int]:
        """Write the demonstrations that are kept; return the number of questions by outcome."""
        kept, outcomes = demonstrating.keep_demonstrations(
            questions, graded, self._job.demonstrations
        )
        if not kept:
            reasons = ", ".join(f"{outcome} {n}" for outcome, n in outcomes.items() if n)
            raise StageError(
                f"none of the teacher's answers to {len(questions)} questions can be learned from"
                f" ({reasons}). Look at the texts in {out / 'completions'}. A larger"
                " teacher.sampling.max_tokens helps against truncated ones, demonstrations.keep:"
                " all keeps the wrong ones"
            )
        parquet.write(
            out / "demonstrations.parquet",
            map(parquet.to_row, kept),
            parquet.DEMONSTRATION,
            outcomes,
        )
        return outcomes

    # Stage 2

    def tune(self, out: Path, *, base: Model, demonstrations: Artifact) -> Counts:
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
        task = TuneTask(
            out=out.resolve(),
            source=_source(base),
            demonstrations=used.resolve(),
            config=job.tune,
            resources=job.resources.trainer,
            seed=job.seed,
        )
        return self._train(task, "round_00/student")

    # Stage 3

    def sample(
        self,
        out: Path,
        *,
        student: Model,
        questions: Artifact,
        demonstrations: Artifact,
        round_number: int,
    ) -> Counts:
        job = self._job.at_round(round_number)
        refine = job.refine
        chosen, outcomes = demonstrating.refinement_questions(
            self._questions(questions, "train"),
            parquet.records(Demonstration, demonstrations.fetched()),
            job,
        )
        completions: dict[PromptKind, int] = {"cot": refine.num_cot, "plain": refine.num_plain}
        sampled = self._sample(
            out,
            "student",
            student.policy,
            chosen,
            SamplingPlan(
                {kind: n for kind, n in completions.items() if n}, refine.sampling, job.seed
            ),
            f"round_{round_number:02d}/samples",
        )
        return {**outcomes, **sampled}

    def pair(
        self,
        out: Path,
        *,
        samples: Artifact,
        round_number: int,
        demonstrations: FilteredDemonstrations | None = None,
    ) -> Counts:
        job = self._job.at_round(round_number)
        stored = None if demonstrations is None else demonstrations.artifact
        return pairing.pair(out, job, samples, stored, round_number)

    def reference_logps(
        self, out: Path, *, student: Model, pairs: Artifact, round_number: int
    ) -> Counts:
        task = ReferenceTask(
            out=out.resolve(),
            source=_source(student),
            pairs=pairs.path.resolve(),
            config=self._job.refine.of_round(round_number),
            resources=self._job.resources.trainer,
        )
        return self._train(task, f"round_{round_number:02d}/reference")

    def refine(
        self,
        out: Path,
        *,
        student: Model,
        pairs: Artifact,
        round_number: int,
        reference: ReferenceLogps | None = None,
    ) -> Counts:
        task = RefineTask(
            out=out.resolve(),
            source=_source(student),
            pairs=pairs.path.resolve(),
            reference=None if reference is None else reference.logps.path.resolve(),
            config=self._job.refine.of_round(round_number),
            resources=self._job.resources.trainer,
            seed=self._job.seed + round_number,
            reference_source=None if reference is None else _source(reference.model),
        )
        return self._train(task, f"round_{round_number:02d}/student")

    # Stage 4

    def evaluate(self, out: Path, *, model: Model, questions: Artifact) -> Counts:
        """Test questions; for a student also validation questions."""
        role: Role = "teacher" if model.version == "teacher" else "student"
        splits: dict[Split, list[Question]] = {"test": self._questions(questions, "test")}
        if role == "student":
            splits["validation"] = self._questions(questions, "validation")

        name = f"{model.version}/evaluation"

        def sample(questions: Sequence[Question], plan: SamplingPlan) -> Counts:
            return self._sample(out, role, model.policy, questions, plan, name)

        evaluation = self._job.evaluation
        return evaluate(
            out, splits, evaluation.prompts, evaluation.sampling, self._job.seed, sample
        )

    # What the stages share

    def _questions(self, questions: Artifact, split: Split) -> list[Question]:
        """The split's questions of every benchmark that has it, in the job's order."""
        names = self._job.data.evaluate if split == "test" else self._job.data.train
        return read.read_questions(questions.fetched(), names, split)

    def _train(self, task: trainer.Task, name: str) -> Counts:
        self._engines.free_resources_for_training()
        return trainer.run(task, name, self._progress)

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

        return TokenPrompter(load_tokenizer(located(_policy_source(policy), weights=False)))


def _base(job: JobConfig) -> Policy:
    return Policy("baseline", job.student.model, job.student.revision)


def _content(model: str, revision: str | None) -> str:
    return model_key(str(assets.resolve(model)), revision)


def _source(model: Model) -> Source:
    """A model for workers, which run on other nodes: folders as absolute paths."""
    source = _policy_source(model.policy)
    folder = Path(source.name)
    return replace(source, name=str(folder.resolve())) if folder.exists() else source


def _policy_source(policy: Policy) -> Source:
    return Source(str(assets.resolve(policy.path)), policy.revision)
