"""One run: a job, its folder and what it tells the user."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from sirt_ray import user_code
from sirt_ray.artifacts.store import DryRunStore, SharedStore, Store
from sirt_ray.config import load
from sirt_ray.config.job import JobConfig
from sirt_ray.core.loop import Loop, Outcome
from sirt_ray.errors import ConfigError, InputError
from sirt_ray.logs import attached_handler, in_run
from sirt_ray.report.journal import SILENT, RunJournal
from sirt_ray.report.live import LiveReport
from sirt_ray.report.progress import LogProgress, progress_for
from sirt_ray.report.tables import scores_tables
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import write_text

if TYPE_CHECKING:  # brings Ray with it
    from sirt_ray.on_ray.metrics import StageMetrics


_CHECKED = {
    **dict.fromkeys(("data", "teacher", "student", "output", "tracking"), True),
    "refine": {"pairs"},
}
"""Sections that checks of a job look at."""


class Run:
    """A job in its folder. `pool`: where its artifacts lie, for a cell of a study. `after`: the run
    that has ended on the same cluster, whose engines may go on running."""

    def __init__(
        self,
        job: JobConfig,
        run_dir: Path,
        console: Console,
        *,
        redo: bool = False,
        pool: Path | None = None,
        after: "Run | None" = None,
    ) -> None:
        from sirt_ray.on_ray.stages import RayStages
        from sirt_ray.tracking.sender import Trackers

        run_dir.mkdir(parents=True, exist_ok=True)
        # The run goes on with its own copy of the code, whatever becomes of the file.
        user_code.copy_into_run(job.code, run_dir)
        kept = job.with_code(user_code.copied_reference)
        config = run_dir / "config.yaml"
        write_text(config, load.dump(kept))
        object_store.push(config)
        job = kept.with_code(lambda reference: user_code.resolve_in_run(reference, run_dir))
        self.job = job
        self._console = console
        self.journal = RunJournal(run_dir, console)
        self.journal.also.append(Trackers(job, run_dir, self._warn))
        kind = Store if pool is None else SharedStore
        self._store = kind(run_dir, redo=redo, tell=self._tell, pool=pool)
        # A study has a report of its own, and makes many cells at a time.
        self._page = None if pool is not None else LiveReport(run_dir, self.journal)
        self._metrics: StageMetrics | None = None
        before = None if after is None else after.stages
        self.stages: RayStages = RayStages(job, run_dir, progress_for(console), before)

    def loop(self) -> Loop:
        return Loop(self.job, self.stages, self._store, self.journal)

    def on_cluster(self, keep_engines: bool = False) -> Outcome:
        """Run the job on the Ray that this process is connected to."""
        from sirt_ray.on_ray.metrics import StageMetrics

        with in_run(self.job.name), attached_handler(self.journal):
            self._metrics = StageMetrics(self.job.name)
            try:
                self.stages.check_cluster()
                outcome = self.loop().run()
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

    def _warn(self, tracker: str, message: str) -> None:
        self.journal.event("tracker_failed", message, tracker=tracker)

    def _tell(self, kind: str, name: str, **fields: Any) -> None:
        self.journal.artifact(kind, name, **fields)
        if self._metrics is not None:
            self._metrics.artifact(kind, name, **fields)
        if self._page is not None and kind == "finished":
            self._page.refresh()

    def finish(self, outcome: Outcome) -> None:
        """Leave page and scores in the folder and print the scores."""
        if self._page is not None:
            self._page.refresh(last=True)  # Trackers take it at the end, which is told next.
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


def dry_run(job: JobConfig, run_dir: Path, pool: Path | None = None) -> DryRunStore:
    """How the folder stands before the run."""
    from sirt_ray.on_ray.stages import RayStages

    found, nobody = DryRunStore(run_dir, pool=pool), Console(quiet=True)
    Loop(job, RayStages(job, run_dir, LogProgress(nobody)), found, SILENT).run()
    return found


def remove_left_behind(jobs: Iterable[JobConfig]) -> None:
    """Remove from the cluster what dead drivers of these jobs have left there: their engines would
    hold what the trainer waits for. Whoever calls this holds the folders."""
    from sirt_ray.on_ray import serve_apps

    serve_apps.delete_apps(serve_apps.run_id(job.run_dir) for job in jobs)


def check_each(jobs: Iterable[JobConfig], check: Callable[[JobConfig], None]) -> None:
    """Check jobs that differ in what a check looks at. Raises one ConfigError with all problems of
    all of them, each once."""
    looked_at = {job.model_dump_json(include=_CHECKED): job for job in jobs}
    problems: dict[str, None] = {}
    for job in looked_at.values():
        try:
            check(job)
        except InputError as error:
            problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        raise ConfigError("\n".join(problems))


@contextmanager
def run_folder(run_dir: Path) -> Generator[None]:
    """Leave no run folder behind where the input turns out to be wrong before anything is made."""
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
    """Which files the jobs execute."""
    for line in user_code.described(reference for job in jobs for reference in job.code):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_unchecked(console: Console, unchecked: Sequence[str]) -> None:
    """What could not be looked at from here; a run would."""
    for text in dict.fromkeys(unchecked):
        console.print(f"[yellow]not checked:[/] {escape(text)}", soft_wrap=True)
