"""MLflow: a run for the job, below it one for each round, below that one for each stage.

`MLFLOW_TRACKING_URI` names the server; without it a database file `mlflow.db` next to the run's
folder is used, which runs share:
`mlflow ui --backend-store-uri sqlite:///runs/mlflow.db`. The experiment is
`MLFLOW_EXPERIMENT_NAME`, or sirt-ray.
"""

import os
import re
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from sirt_ray.tracking.base import RUN, Examples, Figures, RunInfo

_URI = "MLFLOW_TRACKING_URI"
_EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
_PARENT = "mlflow.parentRunId"
_MAX_PARAMETERS = 100
"""Parameters that MLflow takes in one call; of metrics it takes more."""
_MAX_PARAMETER_CHARACTERS = 6000
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]")


class MlflowTracker:
    def __init__(self, info: RunInfo) -> None:
        mlflow: Any = import_module("mlflow")
        self._entities: Any = import_module("mlflow.entities")
        self._info, self._ids = info, info.ids
        parent = info.folder.resolve().parent
        uri = os.environ.get(_URI)
        self._client = mlflow.MlflowClient(tracking_uri=uri or f"sqlite:///{parent / 'mlflow.db'}")
        self._artifacts = None if uri else (parent / "mlartifacts").as_uri()
        self._open: set[str] = set()
        new = RUN not in self._ids
        run_id = self._run(RUN)
        if new:
            self._log_settings(run_id)

    def log(self, scope: str, figures: Figures, step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(_NOT_IN_NAMES.sub("_", name), value, now, step)
            for name, value in figures.items()
        ]
        self._client.log_batch(self._run(scope), metrics=metrics)

    def examples(self, scope: str, rows: Examples, step: int) -> None:
        columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
        self._client.log_table(self._run(scope), columns, "examples.json")

    def file(self, path: Path) -> None:
        self._client.log_artifact(self._run(RUN), str(path))

    def flush(self) -> None:
        """Do nothing: every call arrives before it returns."""

    def close(self, failed: bool) -> None:
        for scope in self._open:
            self._client.set_terminated(self._ids[scope], "FAILED" if failed else "FINISHED")
        self._open.clear()

    def _run(self, scope: str) -> str:
        """Return the id of the scope's run, which is created or resumed."""
        if scope not in self._ids:
            tags: dict[str, Any] = {"sirt.place": scope or "run"}
            if scope != RUN:
                tags[_PARENT] = self._run(scope.rpartition("/")[0])
            name = f"{self._info.name}/{scope}" if scope else self._info.name
            run = self._client.create_run(self._experiment(), tags=tags, run_name=name)
            self._ids[scope] = run.info.run_id
        elif scope not in self._open:
            self._client.update_run(self._ids[scope], status="RUNNING")
        self._open.add(scope)
        return self._ids[scope]

    def _experiment(self) -> str:
        name = os.environ.get(_EXPERIMENT, "sirt-ray")
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return self._client.create_experiment(name, artifact_location=self._artifacts)

    def _log_settings(self, run_id: str) -> None:
        stated = [
            self._entities.Param(name, str(value)[:_MAX_PARAMETER_CHARACTERS])
            for name, value in self._info.settings.items()
        ]
        for first in range(0, len(stated), _MAX_PARAMETERS):
            self._client.log_batch(run_id, params=stated[first : first + _MAX_PARAMETERS])
