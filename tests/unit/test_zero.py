"""DeepSpeed's dictionary, whole, because DeepSpeed ignores a key that it does not know."""

import pytest

from sirt_ray.config import TuneConfig
from sirt_ray.resources import TrainerResources
from sirt_ray.training.zero import deepspeed_config


@pytest.mark.parametrize(
    ("dtype", "stage", "given"),
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
def test_dictionary(dtype: str, stage: int, given: int) -> None:
    config = TuneConfig.model_validate({"dtype": dtype, "max_grad_norm": 0.5})
    resources = TrainerResources.model_validate({"zero_stage": stage})
    assert deepspeed_config(config, resources) == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "zero_optimization": {
            "stage": given,
            "contiguous_gradients": True,
            "overlap_comm": False,
        },
        "bf16": {"enabled": dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
