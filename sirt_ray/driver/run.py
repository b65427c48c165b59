"""One run: a job, its folder and what is reported to the user."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.markup import escape

from sirt_ray import user_code
from sirt_ray.artifacts.store import Artifact, DryRun, Store
from sirt_ray.config import load
from sirt_ray.config.job import JobConfig
from sirt_ray.core.interfaces import Identities, Observer, Stages
from sirt_ray.core.loop import Outcome, self_refine
from sirt_ray.core.scoring import Evaluation
from sirt_ray.core.steps import builder
from sirt_ray.errors import ConfigError, InputError
from sirt_ray.logs import attached_handler, in_run
from sirt_ray.report.journal import RunJournal
from sirt_ray.report.live import LiveReport
from sirt_ray.report.progress import progress_for
from sirt_ray.report.tables import scores_tables
from sirt_ray.storage import object_store, writing
from sirt_ray.types import Scores

if TYPE_CHECKING:  # brings Ray with it
    from sirt_ray.on_ray.metrics import StageMetrics


_CHECKED = {
    **dict.fromkeys(("data", "teacher", "student", "output", "tracking"), True),
    "refine": {"pairs"},
}
"""Sections that the checks of a job read."""


class Run:
    """A job in its folder. `shared_dir`: the artifacts of its study, for a trial. `previous`: the
    run that has ended on the same cluster, whose engines may go on running."""

    def __init__(
        self,
        job: JobConfig,
        run_dir: Path,
        console: Console,
        *,
        force: bool = False,
        shared_dir: Path | None = None,
        previous: "Run | None" = None,
    ) -> None:
        from sirt_ray.on_ray.stages import RayStages
        from sirt_ray.tracking.sender import Trackers

        run_dir.mkdir(parents=True, exist_ok=True)
        # The run uses its own copy of the code, whatever becomes of the file.
        user_code.copy_into_run(job.code, run_dir)
        copied = job.with_code(user_code.copied_reference)
        config = run_dir / "config.yaml"
        writing.write(config, load.dump(copied))
        object_store.push(config)
        job = copied.with_code(lambda reference: user_code.resolve_in_run(reference, run_dir))
        self.job = job
        self._console = console
        self.journal = RunJournal(run_dir, console)
        self.journal.also.append(Trackers(job, run_dir, self._on_tracker_failure))
        self._store = Store(
            run_dir, force=force, on_artifact=self._on_artifact, shared_dir=shared_dir
        )
        # A study has a report of its own, and runs many trials at a time.
        self._page = None if shared_dir is not None else LiveReport(run_dir, self.journal)
        self._metrics: StageMetrics | None = None
        stages = None if previous is None else previous.stages
        self.stages: RayStages = RayStages(job, run_dir, progress_for(console), stages)

    def loop(self) -> Outcome:
        """Run the job, or what is left of it."""
        from sirt_ray.on_ray.stages import JobIdentities

        return run_loop(self.job, JobIdentities(self.job), self.stages, self._store, self.journal)

    def on_cluster(self, keep_engines: bool = False) -> Outcome:
        """Run the job on the Ray cluster that this process is connected to."""
        from sirt_ray.on_ray.metrics import StageMetrics

        with in_run(self.job.name), attached_handler(self.journal):
            self._metrics = StageMetrics(self.job.name)
            try:
                self.stages.check_cluster()
                outcome = self.loop()
            except BaseException as error:
                self.journal.stopped(error)
                self.stages.close()
                raise
            finally:
                self._metrics.stopped()
                self._metrics = None
            if not keep_engines:
                self.stages.close()
        return outcome

    def _on_tracker_failure(self, tracker: str, message: str) -> None:
        self.journal.event("tracker_failed", message, tracker=tracker)

    def _on_artifact(self, kind: str, name: str, **fields: Any) -> None:
        self.journal.artifact(kind, name, **fields)
        if self._metrics is not None:
            self._metrics.artifact(kind, name, **fields)
        if self._page is not None and kind == "finished":
            self._page.refresh()

    def finish(self, outcome: Outcome) -> None:
        """Write the page and the scores into the folder and print the scores."""
        if self._page is not None:
            self._page.refresh(last=True)  # Trackers upload it when the run's end is logged, next.
        self.journal.finish(outcome.scores)
        for table in scores_tables(outcome.scores, self.job.in_domain, outcome.rolled_back):
            self._console.print()
            self._console.print(table)
        if self._page is not None and self._page.path is not None:
            self._console.print(
                f"The report is {object_store.to_uri(self._page.path)}",
                soft_wrap=True,
                highlight=False,
            )


class Journal(Protocol):
    """Reports to the user, and to the run folder, what happened."""

    def event(self, kind: str, message: str, **fields: Any) -> None: ...

    def scores(self, stage: str, scores: Scores) -> None:
        """A stage's scores on the test questions."""
        ...


class JournalObserver(Observer):
    """Writes what the loop observes into the run's journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def evaluated(self, version: str, scores: Scores) -> None:
        self._journal.scores(version, scores)

    def trained(self, weights: Artifact) -> None:
        for warning in (weights.counts or {}).get("warnings", ()):
            self._journal.event(
                warning["name"],
                f"{weights.name}, step {warning['step']}: {warning['message']}",
                artifact=weights.name,
                step=warning["step"],
            )

    def rolled_back(
        self, candidate: str, kept: str, before: Evaluation | None, after: Evaluation | None
    ) -> None:
        assert before is not None and after is not None, "unknown scores roll nothing back"
        old, new = before.held_out, after.held_out
        self._journal.event(
            "rolled_back",
            f"{candidate} is rolled back to {kept}: held-out accuracy fell from"
            f" {old.accuracy:.1%} to {new.accuracy:.1%} on {new.n} questions, beyond its noise."
            " `refine.roll_back: false` keeps it anyway",
            version=candidate,
            kept=kept,
        )


def run_loop(
    job: JobConfig, identities: Identities, stages: Stages, store: Store, journal: Journal
) -> Outcome:
    """Run the method over a job's artifacts and report its events to the journal."""
    if job.evaluation.teacher and not job.teacher.answers:
        journal.event(
            "teacher_not_evaluated",
            "the teacher is a file of demonstrations, which cannot answer the test questions: there"
            " will be no scores of a teacher. `evaluation.teacher: false` silences this message",
        )
    return self_refine(job, identities, builder(store, stages), JournalObserver(journal))


def dry_run(job: JobConfig, run_dir: Path, shared_dir: Path | None = None) -> DryRun:
    """Return the status of the job's artifacts before it runs."""
    from sirt_ray.on_ray.stages import JobIdentities

    planned = DryRun(Store(run_dir, shared_dir=shared_dir))
    self_refine(job, JobIdentities(job), builder(planned, None))
    return planned


def delete_stale_apps(jobs: Iterable[JobConfig]) -> None:
    """Delete the Serve applications that crashed drivers of these jobs left on the cluster; they
    would hold the trainer's GPUs. The caller must hold the locks of the run folders."""
    from sirt_ray.on_ray import serve_apps

    serve_apps.delete_apps(serve_apps.run_id(job.run_dir) for job in jobs)


def check_each(jobs: Iterable[JobConfig], check: Callable[[JobConfig], None]) -> None:
    """Check jobs that differ in what a check reads. Raises one ConfigError with all problems of
    all of them, each once."""
    different = {job.model_dump_json(include=_CHECKED): job for job in jobs}
    problems: dict[str, None] = {}
    for job in different.values():
        try:
            check(job)
        except InputError as error:
            problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        raise ConfigError("\n".join(problems))


@contextmanager
def run_folder(run_dir: Path) -> Generator[None]:
    """Remove the run folder again if the input turns out to be wrong before anything is made."""
    existed = (
        bool(object_store.names(run_dir)) if object_store.stored(run_dir) else run_dir.exists()
    )
    try:
        yield
    except InputError:
        if not existed and not any(run_dir.glob("**/record.json")):
            object_store.discard(run_dir)
        raise


def print_code(console: Console, jobs: Iterable[JobConfig]) -> None:
    """Print which files the jobs execute."""
    for line in user_code.described(reference for job in jobs for reference in job.code):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_unchecked(console: Console, unchecked: Sequence[str]) -> None:
    """Print what could not be checked from this machine; a run checks it."""
    for text in dict.fromkeys(unchecked):
        console.print(f"[yellow]not checked:[/] {escape(text)}", soft_wrap=True)
