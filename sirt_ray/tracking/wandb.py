"""Weights & Biases: a run for each round, grouped under the job's name.

A stage's figures are `student/loss`, `samples/right` and so on, over steps of their own. The usual
variables apply: WANDB_MODE=offline, WANDB_PROJECT (default: sirt-ray), WANDB_ENTITY, WANDB_API_KEY.
Offline runs are in `RUN_DIR/wandb`, for `wandb sync`.
"""

import os
import uuid
from importlib import import_module
from pathlib import Path
from typing import Any

from sirt_ray.tracking.base import RUN, Examples, Figures, RunInfo

_LOGIN_SECONDS = 1
"""A run is not interactive: no key is typed."""
_CONNECTION_SECONDS = 20
"""Timeout of the server's answer; less than the end of a run waits for its trackers."""


class WandbTracker:
    def __init__(self, info: RunInfo) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # the console is the run's
        self._wandb: Any = import_module("wandb")
        self._info = info
        self._runs: dict[str, Any] = {}
        self._stages: set[tuple[str, str]] = set()
        # A deleted run's id can never be used again, so a folder's name would not do.
        self._id = info.ids.setdefault("id", uuid.uuid4().hex[:8])

    def log(self, scope: str, figures: Figures, step: int) -> None:
        run, stage = self._run(scope)
        run.log(
            {f"{stage}/{name}": value for name, value in figures.items()} | {f"{stage}/step": step}
        )

    def examples(self, scope: str, rows: Examples, step: int) -> None:
        run, stage = self._run(scope)
        columns = list(rows[0]) if rows else []
        table = self._wandb.Table(columns=columns, data=[list(row.values()) for row in rows])
        run.log({f"{stage}/examples": table, f"{stage}/step": step})

    def file(self, path: Path) -> None:
        self._run(RUN)[0].save(str(path), base_path=str(path.parent), policy="now")

    def flush(self) -> None:
        """Do nothing: wandb sends from a process of its own."""

    def close(self, failed: bool) -> None:
        for run in self._runs.values():
            run.finish(exit_code=int(failed))
        self._runs.clear()

    def _run(self, scope: str) -> tuple[Any, str]:
        """Return the run that a scope belongs to, and the scope's name in it."""
        group, _, stage = scope.rpartition("/")
        stage = stage or "run"
        if group not in self._runs:
            self._finish_other_rounds()
            name = f"{self._info.name}/{group}" if group else self._info.name
            self._runs[group] = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "sirt-ray"),
                group=self._info.name,
                job_type=group or "run",
                name=name,
                id=f"{self._id}-{group or 'run'}",
                resume="allow",
                reinit="create_new",
                dir=str(self._info.folder),
                config=dict(self._info.settings),
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
        """Finish earlier rounds: one runs at a time, next to the run of what all share."""
        for group in [group for group in self._runs if group]:
            self._runs.pop(group).finish()
            self._stages = {known for known in self._stages if known[0] != group}
