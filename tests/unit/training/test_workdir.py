"""The checkpoints that a training may resume from."""

from pathlib import Path

import pytest

from sirt_ray.config.resources import TrainerResources
from sirt_ray.errors import ArtifactError
from sirt_ray.training.workdir import WorkDir


def test_what_is_repeated_after_a_kill_is_counted(tmp_path: Path) -> None:
    work = WorkDir(tmp_path)
    work.truncate(0)
    for step in range(1, 8):
        work.append({"step": step, "seconds": 0.5})
    assert work.repeated() == {"steps": 0, "seconds": 0.0}
    work.truncate(5)
    work.append({"step": 6})  # as an earlier version wrote it
    assert work.repeated() == {"steps": 2, "seconds": 1.0}
    work.truncate(5)
    assert work.repeated() == {"steps": 3, "seconds": 1.0}


def test_checkpoints_of_another_layout_are_refused_with_the_cure(tmp_path: Path) -> None:
    work = WorkDir(tmp_path)
    one, other = (
        TrainerResources.model_validate({"num_workers": workers, "zero_stage": 3, "offload": off})
        for workers, off in ((2, "none"), (4, "optimizer"))
    )
    work.acquire(one)
    work.acquire(other)  # Nothing is lost while there is no checkpoint.
    work.checkpoint(50).mkdir(parents=True)
    with pytest.raises(ArtifactError) as caught:
        work.acquire(one)
    for words in (
        "half done with resources.trainer of num_workers 4, zero_stage 3, offload optimizer",
        "cannot be continued with num_workers 2, zero_stage 3, offload none",
        "Set num_workers back to 4 and offload back to optimizer, or delete the folder",
        str(tmp_path),
    ):
        assert words in str(caught.value)
    work.acquire(other)
