"""MLflow: a run for the job, below it one for each round, below that one for each stage.

`MLFLOW_TRACKING_URI` says where; without it a database file `mlflow.db` beside the run's folder,
which runs have in common: `mlflow ui --backend-store-uri sqlite:///runs/mlflow.db`. The experiment
is `MLFLOW_EXPERIMENT_NAME`, or sirt-ray.
"""

import os
import re
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from sirt_ray.tracking.base import RUN, Examples, Figures, Origin

_URI = "MLFLOW_TRACKING_URI"
_EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
_PARENT = "mlflow.parentRunId"
_AT_ONCE = 100
"""Parameters that MLflow takes in one call; of metrics it takes more."""
_LONGEST_PARAMETER = 6000
"""Characters."""
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]")


class MlflowTracker:
    def __init__(self, origin: Origin) -> None:
        mlflow: Any = import_module("mlflow")
        self._entities: Any = import_module("mlflow.entities")
        self._origin, self._ids = origin, origin.ids
        beside = origin.folder.resolve().parent
        uri = os.environ.get(_URI)
        self._client = mlflow.MlflowClient(tracking_uri=uri or f"sqlite:///{beside / 'mlflow.db'}")
        self._artifacts = None if uri else (beside / "mlartifacts").as_uri()
        self._open: set[str] = set()
        new = RUN not in self._ids
        run_id = self._run(RUN)
        if new:
            self._log_settings(run_id)

    def log(self, place: str, figures: Figures, step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(_NOT_IN_NAMES.sub("_", name), value, now, step)
            for name, value in figures.items()
        ]
        self._client.log_batch(self._run(place), metrics=metrics)

    def examples(self, place: str, rows: Examples, step: int) -> None:
        columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
        self._client.log_table(self._run(place), columns, "examples.json")

    def file(self, path: Path) -> None:
        self._client.log_artifact(self._run(RUN), str(path))

    def flush(self) -> None:
        """Every call arrives before it returns."""

    def close(self, failed: bool) -> None:
        for place in self._open:
            self._client.set_terminated(self._ids[place], "FAILED" if failed else "FINISHED")
        self._open.clear()

    def _run(self, place: str) -> str:
        """The id of the place's run, which is new, or goes on."""
        if place not in self._ids:
            tags: dict[str, Any] = {"sirt.place": place or "run"}
            if place != RUN:
                tags[_PARENT] = self._run(place.rpartition("/")[0])
            name = f"{self._origin.name}/{place}" if place else self._origin.name
            run = self._client.create_run(self._experiment(), tags=tags, run_name=name)
            self._ids[place] = run.info.run_id
        elif place not in self._open:
            self._client.update_run(self._ids[place], status="RUNNING")
        self._open.add(place)
        return self._ids[place]

    def _experiment(self) -> str:
        name = os.environ.get(_EXPERIMENT, "sirt-ray")
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return self._client.create_experiment(name, artifact_location=self._artifacts)

    def _log_settings(self, run_id: str) -> None:
        stated = [
            self._entities.Param(name, str(value)[:_LONGEST_PARAMETER])
            for name, value in self._origin.settings.items()
        ]
        for first in range(0, len(stated), _AT_ONCE):
            self._client.log_batch(run_id, params=stated[first : first + _AT_ONCE])
