"""Several LoRA adapters, each trained on top of the last -> one on their common base.

    W + s1 B1 A1 + s2 B2 A2  =  W + [B1 B2] [s1 A1; s2 A2]

(Hu et al. 2021, equation 3, twice; s = alpha / rank.) So the ranks add up, and nothing is lost but
the rounding of each merge: in float32 nothing measurable, in bfloat16 the last bits. The base
itself is not loaded.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sirt_ray.errors import ModelError
from sirt_ray.storage.writing import write

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_A, _B = ".lora_A.weight", ".lora_B.weight"
_BASE = ("base_model_name_or_path", "revision")

Config = dict[str, Any]
Weights = dict[str, torch.Tensor]


def combine(adapters: Sequence[Path], out: Path) -> Config:
    """Write the sum of `adapters`, the oldest first, as one adapter on the first one's base, and
    return its configuration. Raises ModelError for an adapter that is not plain LoRA."""
    read = [_read(folder) for folder in adapters]
    (first, weights), ranks = read[0], [config["r"] for config, _ in read]
    config = first
    if len(read) > 1:
        config = read[-1][0] | {name: first.get(name) for name in _BASE}
        # A scale of 1: each A has its scale in it.
        config |= {"r": sum(ranks), "lora_alpha": sum(ranks), "use_rslora": False}
        weights = _stacked(read)
        config["target_modules"] = sorted({name.rpartition(".")[2] for name in _layers(weights)})
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})
    write(out / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return config


def _stacked(read: Sequence[tuple[Config, Weights]]) -> Weights:
    """Stack the adapters' weights; a layer that an adapter does not have is zeros there."""
    shapes = {name: tensor.shape for _, weights in read for name, tensor in weights.items()}
    layers = _layers(shapes)
    stacked: Weights = {}
    for layer in layers:
        ups: list[torch.Tensor] = []
        downs: list[torch.Tensor] = []
        for config, weights in read:
            rank = config["r"]
            down = weights.get(layer + _A)
            up = weights.get(layer + _B)
            if down is None or up is None:
                down = torch.zeros(rank, shapes[layer + _A][1])
                up = torch.zeros(shapes[layer + _B][0], rank)
            downs.append(down * _scale(config))
            ups.append(up)
        stacked[layer + _A] = torch.cat(downs, dim=0).contiguous()
        stacked[layer + _B] = torch.cat(ups, dim=1).contiguous()
    return stacked


def _layers(names: Any) -> list[str]:
    return sorted({name.removesuffix(_A).removesuffix(_B) for name in names})


def _scale(config: Config) -> float:
    rank = config["r"]
    return config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read(folder: Path) -> tuple[Config, Weights]:
    config: Config = json.loads((folder / CONFIG).read_text())
    weights = load_file(folder / WEIGHTS)
    strange = [name for name in weights if not name.endswith((_A, _B))]
    uneven = config.get("use_dora") or config.get("rank_pattern") or config.get("alpha_pattern")
    if config["peft_type"] != "LORA" or uneven or strange:
        raise ModelError(
            f"{folder} is not a plain LoRA adapter of one rank and scale, so it cannot be"
            " exported as an adapter. Give --merge for the whole model"
        )
    return config, weights
