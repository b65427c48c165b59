"""Ray Train and DeepSpeed with gloo on a tiny student: layouts agree, kills cost nothing."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from sirt_ray.artifacts import parquet
from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import RefineConfig, TuneConfig
from sirt_ray.errors import ArtifactError, DataError
from sirt_ray.on_ray.training import trainer
from sirt_ray.training.run import run
from sirt_ray.training.tasks import ReferenceTask, RefineTask, Source, TuneTask
from sirt_ray.training.workdir import last_line, read_lines
from tests.helpers import tiny
from tests.helpers.paths import ROOT
from tests.helpers.progress import RecordedProgress

pytestmark = [pytest.mark.ray, pytest.mark.timeout(540)]

CPU = torch.device("cpu")
TUNE = TuneConfig(
    batch_size=6,
    epochs=10,
    learning_rate=2e-3,
    evaluate_every_steps=5,
    validation_fraction=0.1,
)
REFINE = RefineConfig(batch_size=6, epochs=3, learning_rate=1e-3, warmup_steps=0)


def layout(num_workers: int, zero_stage: int, **changed: Any) -> TrainerResources:
    return TrainerResources(
        num_workers=num_workers,
        zero_stage=zero_stage,  # pyright: ignore[reportArgumentType]
        cpus_per_worker=0.5,
        checkpoint_every_steps=5,
        max_tokens_per_micro_batch=600,
        max_failures=changed.get("max_failures", 1),
    )


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, demonstrations and pairs."""
    room = tmp_path_factory.mktemp("training")
    tiny.save_student(room / "base", tied=True)
    tiny.write_demonstrations(room / "demonstrations", range(24))
    tiny.write_pairs(room / "pairs", range(14))
    return room


def tune(room: Path, out: Path, resources: TrainerResources, **changed: Any) -> Mapping[str, Any]:
    config = TUNE.model_copy(update=changed)
    source, demonstrations = Source(str(room / "base")), room / "demonstrations"
    task = TuneTask(out, source, demonstrations, config, resources, seed=0)
    return trainer.run(task, "tune", RecordedProgress())


@pytest.fixture(scope="module")
def tuned(room: Path, ray_cluster: None) -> Path:
    """A student that was tuned without a break."""
    out = room / "tuned"
    tune(room, out, layout(2, 3))
    return out


@pytest.fixture(scope="module")
def alone(room: Path) -> Path:
    """The same training in this process, with plain torch."""
    out = room / "tuned_alone"
    source, resources = Source(str(room / "base")), layout(1, 0)
    run(TuneTask(out, source, room / "demonstrations", TUNE, resources, seed=0), CPU)
    return out


def weights(student: Path) -> dict[str, torch.Tensor]:
    return load_file(student / "model.safetensors")


def assert_same_training(one: Path, two: Path) -> None:
    """Loss, gradient and validation loss of every step, and the weights, up to float32 rounding."""
    for a, b in zip(
        read_lines(one / "metrics.jsonl"), read_lines(two / "metrics.jsonl"), strict=True
    ):
        assert b["step"] == a["step"]
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-3)
        assert b.get("validation_loss", 0.0) == pytest.approx(
            a.get("validation_loss", 0.0), rel=2e-5
        )
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, rtol=0, atol=1e-5)


def assert_bitwise_same(one: Path, two: Path) -> None:
    assert all(torch.equal(tensor, weights(two)[name]) for name, tensor in weights(one).items())
    steps = [line["step"] for line in read_lines(two / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))


def test_workers_of_ray_train_the_same_student(tuned: Path, alone: Path) -> None:
    assert_same_training(alone, tuned)
    assert not (tuned / ".work").exists()
    counts = json.loads((tuned / "training.json").read_text())
    loss = tiny.validation_loss(tuned, range(24), TUNE.validation_fraction, seed=0)
    assert loss == pytest.approx(counts["best_validation_loss"], rel=1e-6)


def train_workers() -> list[psutil.Process]:
    """The training workers below this process's own Ray."""
    workers: list[psutil.Process] = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(one.cmdline()):
                workers.append(one)
    return workers


def wait_for_step(out: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        line = last_line(out / ".work" / "metrics.jsonl")
        if line is not None and line["step"] >= step:
            return
        time.sleep(0.01)
    raise TimeoutError(f"step {step} was not reached")


def test_killed_worker_costs_nothing(room: Path, tuned: Path) -> None:
    out = room / "worker_killed"
    killed: list[int] = []

    def kill() -> None:
        wait_for_step(out, 1)
        worker = train_workers()[0]
        wait_for_step(out, 6)  # The newest checkpoint is that of step 5.
        worker.kill()
        killed.append(worker.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    tune(room, out, layout(2, 3))
    killer.join()
    assert killed
    assert_bitwise_same(tuned, out)


def kill_all(processes: Iterable[psutil.Process | subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


DRIVER = """
import sys
from pathlib import Path
import ray
sys.path[:0] = sys.argv[1].split(":")
import tests.integration.on_ray.training.test_trainer as here
ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
here.tune(Path(sys.argv[2]), Path(sys.argv[3]), here.layout(2, 3))
"""


def test_killed_machine_costs_nothing(room: Path, tuned: Path) -> None:
    out = room / "driver_killed"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(ROOT), str(room), str(out)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_step(out, 12)
    finally:
        kill_all([*psutil.Process(driver.pid).children(recursive=True), driver])
        driver.wait()
    with pytest.raises(ArtifactError, match="zero_stage back to 3"):
        tune(room, out, layout(2, 1))
    tune(room, out, layout(2, 3))
    assert_bitwise_same(tuned, out)


def test_refinement_on_two_workers_is_refinement_in_one_process(
    room: Path, ray_cluster: None
) -> None:
    resources, pairs, student = layout(2, 2), room / "pairs", Source(str(room / "base"))
    bars = RecordedProgress()
    reference = ReferenceTask(room / "reference", student, pairs, REFINE, resources)
    counts = trainer.run(reference, "reference", bars)
    assert counts["pairs"] == 14
    out = room / "refined"
    refinement = RefineTask(out, student, pairs, reference.out, REFINE, resources, seed=0)
    trainer.run(refinement, "refine", bars)
    done, figures = bars.shown[-1]
    assert done == 9
    assert "kl" in figures and "length_drift" in str(figures["warnings"])

    lone = layout(1, 0)
    run(ReferenceTask(room / "reference_alone", student, pairs, REFINE, lone), CPU)
    task = RefineTask(
        room / "refined_alone", student, pairs, room / "reference_alone", REFINE, lone, seed=0
    )
    run(task, CPU)
    assert_same_training(room / "refined_alone", out)
    for one, two in zip(
        parquet.read(room / "reference"), parquet.read(room / "reference_alone"), strict=True
    ):
        assert one == pytest.approx(two, abs=1e-4)
    assert read_lines(out / "metrics.jsonl")[-1]["margin"] > 0.1


def test_workers_error_reaches_the_user_as_it_is(room: Path, ray_cluster: None) -> None:
    with pytest.raises(DataError, match="24 too_long"):
        tune(room, room / "too_long", layout(1, 1, max_failures=0), max_length=10)
