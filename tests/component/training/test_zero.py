"""DeepSpeed's dictionary, whole, because DeepSpeed ignores a key that it does not know."""

import pytest
from pydantic import ValidationError

from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import TuneConfig
from sirt_ray.training.engine import deepspeed_config


@pytest.mark.parametrize(
    ("dtype", "stage", "configured"),
    [
        ("float32", 0, 0),
        ("float32", 1, 1),
        ("float32", 2, 2),
        ("float32", 3, 3),
        ("bfloat16", 0, 1),
        ("bfloat16", 1, 1),
        ("bfloat16", 3, 3),
    ],
)
def test_dictionary(dtype: str, stage: int, configured: int) -> None:
    config = TuneConfig.model_validate({"dtype": dtype, "max_grad_norm": 0.5})
    resources = TrainerResources.model_validate({"zero_stage": stage})
    assert deepspeed_config(config, resources) == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "zero_optimization": {
            "stage": configured,
            "contiguous_gradients": True,
            "overlap_comm": False,
        },
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


@pytest.mark.parametrize(
    ("stage", "offload", "moved"),
    [
        (1, "optimizer", {"offload_optimizer"}),
        (2, "optimizer", {"offload_optimizer"}),
        (3, "parameters", {"offload_optimizer", "offload_param"}),
    ],
)
def test_offload(stage: int, offload: str, moved: set[str]) -> None:
    resources = TrainerResources.model_validate({"zero_stage": stage, "offload": offload})
    sections = deepspeed_config(TuneConfig(), resources)["zero_optimization"]
    offloaded = {name: value for name, value in sections.items() if name.startswith("offload")}
    assert offloaded == {name: {"device": "cpu"} for name in moved}


@pytest.mark.parametrize(
    ("stage", "offload", "needed"), [(0, "optimizer", 1), (2, "parameters", 3)]
)
def test_what_is_not_sharded_cannot_be_offloaded(stage: int, offload: str, needed: int) -> None:
    with pytest.raises(ValidationError, match=f"needs zero_stage {needed} .* is {stage}"):
        TrainerResources.model_validate({"zero_stage": stage, "offload": offload})
