"""QLoRA: the base in 4 bits while adapters are trained on it (Dettmers et al. 2023, section 3).

`transformers` and bitsandbytes do it; here stands what they are asked, and when that is refused.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

from sirt_ray.errors import ResourceError

if TYPE_CHECKING:  # What is looked for before a run begins must not wait for torch.
    import torch


def check(on_gpu: bool) -> None:
    """Raise ResourceError where a worker could not load a model in 4 bits."""
    missing = [] if on_gpu else ["a GPU for every training worker"]
    if importlib.util.find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes (pip install 'sirt-ray[qlora]')")
    if missing:
        raise ResourceError(
            f"lora.quantize is set (QLoRA), which needs {' and '.join(missing)}. Provide that, or"
            " take lora.quantize away to train LoRA on the base as it is"
        )


def arguments(compute: "torch.dtype", device: "torch.device") -> dict[str, Any]:
    """What `from_pretrained` is given to load in 4 bits, on `device`, and compute in `compute`.

    Raises ResourceError without a GPU or bitsandbytes.
    """
    check(device.type == "cuda")
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        ),
        "device_map": {"": device},
    }
