"""Progress of a running training, from the metric lines that its workers write: the progress bar,
metrics, events, and what the training waits for."""

import logging
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from sirt_ray.config.resources import TrainerResources
from sirt_ray.core.interfaces import Progress
from sirt_ray.errors import StorageError
from sirt_ray.logs import Wait, current_context, log_event, start_thread, waiting
from sirt_ray.on_ray.cluster import describe_pending, has_pending, of_trainer
from sirt_ray.on_ray.metrics import Emitter, show_training
from sirt_ray.storage import object_store
from sirt_ray.training.workdir import Tail, WorkDir

_POLL_SECONDS = 0.5
_POLL_STORAGE_SECONDS = 5.0
_SHOWN = ("loss", "validation_loss", "accuracy", "margin", "kl", "tokens_per_second", "mfu")


@contextmanager
def watched(
    work: WorkDir, resources: TrainerResources, name: str, progress: Progress
) -> Generator[None]:
    """Show the workers' progress while the block runs."""
    over = threading.Event()

    def missing() -> str:  # Completes "waiting for <what>: ..."
        if has_pending():
            return describe_pending(of_trainer(resources).bundles)
        line = work.newest()
        if line is None:
            return "Ray Train starts them, or they load the model and the data"
        return f"step {line['step']} of {line['total_steps']} was the last"

    what = f"the first step of {name} by {resources.num_workers} training workers"
    with waiting(what, missing) as wait:
        monitor = _Monitor(work, name, progress, Emitter(current_context()), wait)
        thread = start_thread(partial(monitor.run, over), f"watch {name}")
        try:
            yield
        finally:
            over.set()
            thread.join()


@dataclass(frozen=True, slots=True)
class _Monitor:
    """Reads new lines in a thread and updates the bar, the metrics and the wait."""

    work: WorkDir
    name: str
    progress: Progress
    emitter: Emitter
    wait: Wait

    def run(self, over: threading.Event) -> None:
        """Read lines until `over` is set. The bar opens with the first line, since only the workers
        know the number of steps."""
        in_storage = object_store.stored(self.work.path)
        lines = _NewestInStorage(self.work) if in_storage else Tail(self.work.metrics)
        pause = _POLL_STORAGE_SECONDS if in_storage else _POLL_SECONDS
        while not (new := lines.new()):
            if over.wait(pause):
                return
        self.wait.moved(f"the next step of {self.name}")
        with self.progress.stage(self.name, new[-1]["total_steps"], "steps") as bar:
            while True:
                for line in new:
                    if not in_storage:  # Only some lines are read while they are in storage.
                        log_event(logging.DEBUG, "a step", "step", artifact=self.name, line=line)
                    bar.update(line["step"], **_figures(line))
                if new:
                    self.wait.moved()
                    with suppress(StorageError):
                        show_training(self.emitter, new[-1], self.work.repeated())
                if over.wait(pause):
                    return
                new = lines.new()


class _NewestInStorage:
    """The newest line of a training in object storage. Replaces `Tail`, but skips lines."""

    def __init__(self, work: WorkDir) -> None:
        self._work = work
        self._last: dict[str, Any] | None = None

    def new(self) -> list[dict[str, Any]]:
        before = self._last
        with suppress(StorageError):  # The next read may succeed.
            self._last = self._work.newest()
        return [] if self._last is None or self._last == before else [self._last]


def _figures(line: Mapping[str, Any]) -> dict[str, str | float]:
    """Return the values of a line that the bar shows."""
    figures: dict[str, str | float] = {key: line[key] for key in _SHOWN if key in line}
    if "warnings" in line:
        figures["warnings"] = ", ".join(line["warnings"])
    return figures
