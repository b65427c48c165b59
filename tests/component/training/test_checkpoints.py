"""What a training resumes from: safetensors and JSON, the newest checkpoint that can be read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import TuneConfig
from sirt_ray.errors import ArtifactError
from sirt_ray.training.run import run
from sirt_ray.training.shards import Shard, StoredShards, write
from sirt_ray.training.tasks import Source, TuneTask
from sirt_ray.training.workdir import WorkDir
from tests.helpers import tiny
from tests.helpers.killed_training import KilledAt, KilledError

CONFIG = TuneConfig(
    batch_size=8, epochs=3, learning_rate=3e-3, evaluate_every_steps=2, validation_fraction=0.1
)
RESOURCES = TrainerResources(checkpoint_every_steps=2, max_tokens_per_micro_batch=1000)

Train = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    folder = tmp_path_factory.mktemp("training")
    source = Source(str(tiny.save_student(folder / "base")))
    demonstrations = tiny.write_demonstrations(folder / "demonstrations", range(24))

    def trained(out: Path) -> dict[str, Any]:
        task = TuneTask(out, source, demonstrations, CONFIG, RESOURCES, seed=0)
        return run(task, torch.device("cpu"))

    return trained


@pytest.fixture(scope="module")
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "student"
    train(out)
    return out


@pytest.fixture(scope="module")
def killed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was killed at step 7 of 9, with checkpoints of 4 and 6."""
    out = tmp_path_factory.mktemp("killed") / "student"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sirt_ray.training.run.WorkDir", lambda out, _: KilledAt(out, 7))
        with pytest.raises(KilledError):
            train(out)
    return out


@pytest.fixture
def half_done(killed: Path, tmp_path: Path) -> WorkDir:
    return WorkDir(shutil.copytree(killed, tmp_path / "student"))


def test_checkpoints_are_safetensors_and_json(half_done: WorkDir) -> None:
    found = sorted(
        path.relative_to(half_done.checkpoints).as_posix()
        for path in half_done.checkpoints.rglob("*")
        if path.is_file()
    )
    files = ["optimizer-00001-of-00001.safetensors", "state.json"]
    assert found == [f"step_{step:06d}/{name}" for step in (4, 6) for name in files]
    (_, newest) = half_done.complete()
    stored = load_file(newest / files[0])
    assert {name.rpartition("/")[2] for name in stored} == {"master", "exp_avg", "exp_avg_sq"}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_zeros(path: Path) -> None:
    """Write what a power cut may leave of a file that was not made durable."""
    path.write_bytes(bytes(path.stat().st_size))


def delete(path: Path) -> None:
    path.unlink()


def without_a_parameter(path: Path) -> None:
    rewritten(path, lambda shards: shards.pop(next(iter(shards))))


def shifted(path: Path) -> None:
    rewritten(path, lambda shards: shards.update({next(iter(shards)): [1, 10**6]}))


def of_another_format(path: Path) -> None:
    save_file(load_file(path), path)


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    shards = json.loads(header["shards"])
    change(shards)
    save_file(load_file(path), path, metadata=header | {"shards": json.dumps(shards)})


OPTIMIZER = "optimizer-00001-of-00001.safetensors"


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("state.json", empty),
        ("state.json", cut),
        ("state.json", with_zeros),
        ("state.json", delete),
        (OPTIMIZER, empty),
        (OPTIMIZER, cut),
        (OPTIMIZER, with_zeros),
        (OPTIMIZER, delete),
        (OPTIMIZER, without_a_parameter),
        (OPTIMIZER, shifted),
        (OPTIMIZER, of_another_format),
    ],
)
def test_a_broken_checkpoint_is_given_up_for_the_one_before_it(
    half_done: WorkDir, undisturbed: Path, train: Train, name: str, broken: Callable[[Path], None]
) -> None:
    before, newest = half_done.complete()
    broken(newest / name)
    counts = train(half_done.out)
    (reason,) = counts["repeated"]["unreadable"]
    assert reason.startswith("step_000006: ") and str(newest) in reason
    assert before.name == "step_000004" and counts["repeated"]["steps"] == 3  # 5, 6 and 7.
    assert_same_student(half_done.out, undisturbed)


def test_without_a_readable_checkpoint_the_training_starts_again(
    half_done: WorkDir, undisturbed: Path, train: Train
) -> None:
    for checkpoint in half_done.complete():
        empty(checkpoint / "state.json")
    counts = train(half_done.out)
    assert [one[:11] for one in counts["repeated"]["unreadable"]] == ["step_000006", "step_000004"]
    assert counts["repeated"]["steps"] == 7
    assert_same_student(half_done.out, undisturbed)


def test_pickles_of_an_earlier_version_are_refused(half_done: WorkDir, train: Train) -> None:
    half_done.acquire(RESOURCES)
    torch.save({}, half_done.complete()[-1] / "state.pt")
    refusal = r"earlier version .* pickle.*delete the folder"
    with pytest.raises(ArtifactError, match=refusal):
        half_done.acquire(RESOURCES)
    with pytest.raises(ArtifactError, match=refusal):
        train(half_done.out)


def test_a_worker_of_another_layout_finds_its_ranges(tmp_path: Path) -> None:
    """Three workers write ten elements, two read them."""
    whole = {kind: torch.rand(10) for kind in ("master", "exp_avg", "exp_avg_sq")}

    def shard(start: int, stop: int, values: dict[str, torch.Tensor], steps: float) -> Shard:
        cut = {kind: tensor[start:stop] for kind, tensor in values.items()}
        return Shard("weight", start, 10, cut, torch.tensor(steps))

    for rank, (start, stop) in enumerate([(0, 4), (4, 8), (8, 10)]):
        write([shard(start, stop, whole, 7.0)], tmp_path, rank, 4)
    write([], tmp_path, 3, 4)  # A fourth worker may have nothing.
    read = {kind: torch.zeros(10) for kind in whole}
    for start, stop in ((0, 5), (5, 10)):
        mine = shard(start, stop, read, 0.0)
        with StoredShards(tmp_path) as stored:
            stored.open()
            stored.check([mine])
            stored.read_into([mine])
        assert mine.step == 7.0
    assert all(torch.equal(read[kind], whole[kind]) for kind in whole)
    (tmp_path / "optimizer-00002-of-00004.safetensors").unlink()
    with pytest.raises(ArtifactError, match="has 3 of 4 optimizer files"):
        StoredShards(tmp_path).open()


def assert_same_student(one: Path, other: Path) -> None:
    first, second = (load_file(student / "model.safetensors") for student in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
