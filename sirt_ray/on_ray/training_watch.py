"""What is seen of a training while it runs, by the lines that its workers write: the bar, metrics,
and what it waits for."""

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from sirt_ray import storage
from sirt_ray.core.interfaces import Progress
from sirt_ray.errors import StorageError
from sirt_ray.on_ray.metrics import Emitter, show_training
from sirt_ray.on_ray.needs import of_trainer
from sirt_ray.on_ray.room import room, waits_for_room
from sirt_ray.place import here, thread_here
from sirt_ray.resources import TrainerResources
from sirt_ray.training.workfolder import WorkFolder
from sirt_ray.waiting import Wait, waiting

_POLL_SECONDS = 0.5
_POLL_STORAGE_SECONDS = 5.0
_SHOWN = ("loss", "validation_loss", "accuracy", "margin", "kl", "tokens_per_second", "mfu")


@contextmanager
def watched(
    work: WorkFolder, resources: TrainerResources, name: str, progress: Progress
) -> Generator[None]:
    """Show how far the workers are while the block runs."""
    over = threading.Event()

    def missing() -> str:
        if waits_for_room():
            return room(of_trainer(resources).bundles)
        line = work.newest()
        if line is None:
            return "Ray Train starts them, or they load the model and the data"
        return f"step {line['step']} of {line['total_steps']} was the last"

    what = f"the first step of {name} by {resources.num_workers} training workers"
    with waiting(what, missing) as wait:
        watch = _Watch(work, name, progress, Emitter(here()), wait)
        watcher = thread_here(partial(watch.run, over), f"watch {name}")
        try:
            yield
        finally:
            over.set()
            watcher.join()


@dataclass(frozen=True, slots=True)
class _Watch:
    work: WorkFolder
    name: str
    progress: Progress
    emitter: Emitter
    wait: Wait

    def run(self, over: threading.Event) -> None:
        """The bar opens with the first line: only the workers know how many steps there are."""
        line = None
        pause = _POLL_STORAGE_SECONDS if storage.stored(self.work.path) else _POLL_SECONDS
        while line is None:
            if over.wait(pause):
                return
            line = self._newest()
        self.wait.moved(f"the next step of {self.name}")
        with self.progress.stage(self.name, line["total_steps"], "steps") as bar:
            while True:
                newest = self._newest() or line
                if newest["step"] != line["step"]:
                    self.wait.moved()
                line = newest
                bar.update(line["step"], **_figures(line))
                with suppress(StorageError):
                    show_training(self.emitter, line, self.work.repeated())
                if over.wait(pause):
                    return

    def _newest(self) -> dict[str, Any] | None:
        with suppress(StorageError):  # The next look may reach it.
            return self.work.newest()
        return None


def _figures(line: Mapping[str, Any]) -> dict[str, str | float]:
    """What of a line stands beside the bar."""
    figures: dict[str, str | float] = {key: line[key] for key in _SHOWN if key in line}
    if "warnings" in line:
        figures["warnings"] = ", ".join(line["warnings"])
    return figures
