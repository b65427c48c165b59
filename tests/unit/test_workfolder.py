"""Which checkpoints a training may go on from."""

from pathlib import Path

import pytest

from sirt_ray.errors import ArtifactError
from sirt_ray.resources import TrainerResources
from sirt_ray.training.workfolder import WorkFolder


def test_checkpoints_of_another_layout_are_refused_with_the_cure(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    one, other = (
        TrainerResources.model_validate({"num_workers": workers, "zero_stage": 3, "offload": off})
        for workers, off in ((2, "none"), (4, "optimizer"))
    )
    work.claim(one)
    work.claim(other)  # Nothing is lost while there is no checkpoint.
    work.checkpoint(50).mkdir(parents=True)
    with pytest.raises(ArtifactError) as caught:
        work.claim(one)
    for words in (
        "half done with resources.trainer of num_workers 4, zero_stage 3, offload optimizer",
        "cannot be continued with num_workers 2, zero_stage 3, offload none",
        "Set num_workers back to 4 and offload back to optimizer, or delete the folder",
        str(tmp_path),
    ):
        assert words in str(caught.value)
    work.claim(other)
