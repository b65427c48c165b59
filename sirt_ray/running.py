"""One run: a job, its folder and what it tells the user."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from sirt_ray import jobfile, storage
from sirt_ray.artifacts import Store
from sirt_ray.config import JobConfig
from sirt_ray.core.loop import Loop, Outcome
from sirt_ray.errors import InputError
from sirt_ray.pool import SharedStore
from sirt_ray.report.journal import SILENT, RunJournal
from sirt_ray.report.progress import LogProgress, progress_for
from sirt_ray.report.table import scores_tables
from sirt_ray.survey import Survey


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

        run_dir.mkdir(parents=True, exist_ok=True)
        config = run_dir / "config.yaml"
        config.write_text(jobfile.dump(job))
        storage.push(config)
        self.job = job
        self._console = console
        self.journal = RunJournal(run_dir, console)
        kind = Store if pool is None else SharedStore
        self._store = kind(run_dir, redo=redo, tell=self.journal.artifact, pool=pool)
        say = partial(console.print, soft_wrap=True, style="dim", markup=False, highlight=False)
        before = None if after is None else after.stages
        self.stages: RayStages = RayStages(job, run_dir, progress_for(console), say, before)

    def loop(self) -> Loop:
        return Loop(self.job, self.stages, self._store, self.journal)

    def on_cluster(self, keep_engines: bool = False) -> Outcome:
        """Run the job on the Ray that this process is connected to."""
        try:
            self.stages.check_cluster()
            outcome = self.loop().run()
        except BaseException:
            self.stages.close()
            raise
        if not keep_engines:
            self.stages.close()
        return outcome

    def finish(self, outcome: Outcome) -> None:
        """Leave the scores in the folder and print them."""
        self.journal.finish(outcome.scores)
        for table in scores_tables(outcome.scores, self.job.in_domain, outcome.rolled_back):
            self._console.print()
            self._console.print(table)


def survey(job: JobConfig, run_dir: Path, pool: Path | None = None) -> Survey:
    """How the folder stands before the run."""
    from sirt_ray.on_ray.stages import RayStages

    found, nobody = Survey(run_dir, pool=pool), Console(quiet=True)
    Loop(job, RayStages(job, run_dir, LogProgress(nobody), nobody.print), found, SILENT).run()
    return found


@contextmanager
def run_folder(run_dir: Path) -> Generator[None]:
    """Leave no run folder behind where the input turns out to be wrong before anything is made."""
    existed = bool(storage.names(run_dir)) if storage.stored(run_dir) else run_dir.exists()
    try:
        yield
    except InputError:
        if not existed and not any(run_dir.glob("**/record.json")):
            storage.discard(run_dir)
        raise


def print_unchecked(console: Console, unchecked: Sequence[str]) -> None:
    """What could not be looked at from here; a run would."""
    for text in dict.fromkeys(unchecked):
        console.print(f"[yellow]not checked:[/] {escape(text)}", soft_wrap=True)
