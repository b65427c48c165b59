"""Weights & Biases: a run for each round, grouped under the job's name.

A stage's figures are `student/loss`, `samples/right` and so on, over steps of their own. The usual
variables say where: WANDB_MODE=offline, WANDB_PROJECT (sirt-ray without it), WANDB_ENTITY,
WANDB_API_KEY. Offline runs lie in `RUN_DIR/wandb`, for `wandb sync`.
"""

import os
import uuid
from importlib import import_module
from pathlib import Path
from typing import Any

from sirt_ray.tracking.base import RUN, Examples, Figures, Origin

_LOGIN_SECONDS = 1
"""Nobody sits before a run to type a key."""
_CONNECTION_SECONDS = 20
"""For the server to answer; less than the end of a run waits for its trackers."""


class WandbTracker:
    def __init__(self, origin: Origin) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # the console is the run's
        self._wandb: Any = import_module("wandb")
        self._origin = origin
        self._runs: dict[str, Any] = {}
        self._stages: set[tuple[str, str]] = set()
        # A deleted run's id can never be used again, so a folder's name would not do.
        self._id = origin.ids.setdefault("id", uuid.uuid4().hex[:8])

    def log(self, place: str, figures: Figures, step: int) -> None:
        run, stage = self._run(place)
        run.log(
            {f"{stage}/{name}": value for name, value in figures.items()} | {f"{stage}/step": step}
        )

    def examples(self, place: str, rows: Examples, step: int) -> None:
        run, stage = self._run(place)
        columns = list(rows[0]) if rows else []
        table = self._wandb.Table(columns=columns, data=[list(row.values()) for row in rows])
        run.log({f"{stage}/examples": table, f"{stage}/step": step})

    def file(self, path: Path) -> None:
        self._run(RUN)[0].save(str(path), base_path=str(path.parent), policy="now")

    def flush(self) -> None:
        """It sends by itself."""

    def close(self, failed: bool) -> None:
        for run in self._runs.values():
            run.finish(exit_code=int(failed))
        self._runs.clear()

    def _run(self, place: str) -> tuple[Any, str]:
        """The run that a place belongs to, and the place's name in it."""
        group, _, stage = place.rpartition("/")
        stage = stage or "run"
        if group not in self._runs:
            self._finish_other_rounds()
            name = f"{self._origin.name}/{group}" if group else self._origin.name
            self._runs[group] = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "sirt-ray"),
                group=self._origin.name,
                job_type=group or "run",
                name=name,
                id=f"{self._id}-{group or 'run'}",
                resume="allow",
                reinit="create_new",
                dir=str(self._origin.folder),
                config=dict(self._origin.settings),
                settings=self._wandb.Settings(
                    console="off",
                    login_timeout=_LOGIN_SECONDS,
                    init_timeout=_CONNECTION_SECONDS,
                ),
            )
        if (group, stage) not in self._stages:
            self._stages.add((group, stage))
            self._runs[group].define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        return self._runs[group], stage

    def _finish_other_rounds(self) -> None:
        """One round goes on at a time, beside what all have in common."""
        for group in [group for group in self._runs if group]:
            self._runs.pop(group).finish()
            self._stages = {known for known in self._stages if known[0] != group}
