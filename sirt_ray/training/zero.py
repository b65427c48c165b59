"""Config -> DeepSpeed's dictionary. Nothing else decides what DeepSpeed does."""

from typing import Any

from sirt_ray.config.resources import TrainerResources
from sirt_ray.optimization import TrainingConfig

_NEVER = 2**31
"""Steps between DeepSpeed's own progress lines."""


def deepspeed_config(config: TrainingConfig, resources: TrainerResources) -> dict[str, Any]:
    """What `deepspeed.initialize` is given.

    Batch sizes are nominal: the micro-batches of a step are counted by the trainer, which tells
    DeepSpeed the last one of each step and divides the loss by the whole batch itself. The
    optimizer is made by the trainer too, also for offload: torch's is fused on the CPU as well, and
    DeepSpeed's would have to be compiled on every machine. In bfloat16 without ZeRO DeepSpeed would
    accumulate gradients in bfloat16; stage 1 computes the same and accumulates in float32.
    """
    bfloat16 = config.dtype == "bfloat16"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": {
            "stage": max(resources.zero_stage, 1) if bfloat16 else resources.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": False,
            **({} if resources.offload == "none" else {"offload_optimizer": {"device": "cpu"}}),
            **({"offload_param": {"device": "cpu"}} if resources.offload == "parameters" else {}),
        },
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
    }
