"""Waiting for room that others have: it is told, with who has it, and given up at its limit."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
from ray.util import placement_group, remove_placement_group

from sirt_ray.config.resources import EngineConfig, TrainerResources
from sirt_ray.config.training import TuneConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ResourceError
from sirt_ray.logs import CallbackHandler, attached_handler, waiting
from sirt_ray.on_ray.engine import server as serving
from sirt_ray.on_ray.engine.server import ModelServer
from sirt_ray.on_ray.training import monitor, trainer
from sirt_ray.training.tasks import Source, TuneTask
from tests.helpers.progress import RecordedProgress
from tests.helpers.sampling import start_server
from tests.helpers.sleeping_engine import SleepingEngine

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def engine(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """It has 2 of the cluster's 4 CPUs; something else has a third."""
    other = placement_group([{"CPU": 1}])
    ray.get(other.ready(), timeout=60)
    server = start_server(
        "student",
        Policy("v", "x"),
        EngineConfig(num_cpus=2),
        run="waits",
        pointers=tmp_path_factory.mktemp("pointers"),
        serving=SleepingEngine(1, 0.0, 0.0),
    )
    yield server
    server.stop()
    remove_placement_group(other)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is said of waits, twice a second and not after half a minute."""
    monkeypatch.setattr("sirt_ray.logs._LONGEST_PAUSE_SECONDS", 0.5)
    for module in (serving, monitor):
        monkeypatch.setattr(module, "waiting", partial(waiting, first_s=0.5))
    said: list[str] = []
    with attached_handler(CallbackHandler(said.append)):
        yield said


def check(said: list[str], what: str, needs: str, holder: str) -> None:
    told = [line for line in said if "it needs" in line]
    assert told
    assert told[-1].startswith(f"waiting for {what}")
    assert f"it needs {needs}; free now: 1 CPU" in told[-1]
    assert f"2 CPU by {holder}" in told[-1] and "1 CPU by other groups" in told[-1]


def test_an_engine_that_finds_no_room(engine: ModelServer, said: list[str], tmp_path: Path) -> None:
    late = ModelServer.deploy(
        "teacher",
        Policy("v", "x"),
        EngineConfig(num_cpus=3, start_timeout_s=3),
        run="waits",
        pointers=tmp_path,
        serving=SleepingEngine(1, 0.0, 0.0),
    )
    with pytest.raises(ResourceError, match="start_timeout_s"):
        late.wait_until_ready()
    check(said, "the teacher engine", "3 CPU", engine.app)


def test_training_workers_that_find_no_room(
    engine: ModelServer, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3")
    resources = TrainerResources(num_workers=2, start_timeout_s=3)
    rows = tmp_path / "x.parquet"
    task = TuneTask(tmp_path, Source("x"), rows, TuneConfig(), resources, seed=0)
    with pytest.raises(ResourceError, match="2 training workers got no resources"):
        trainer.run(task, "round_00/student", RecordedProgress())
    what = "the first step of round_00/student by 2 training workers"
    check(said, what, "2 x (1 CPU)", engine.app)
