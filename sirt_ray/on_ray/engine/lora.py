"""LoRA adapters on a running engine: what an adapter's folder says, and whether an engine that was
started with certain weights can take it.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ModelError
from sirt_ray.on_ray.engine.weights import local_folder, on_hub, wrap_model_errors
from sirt_ray.storage.hashing import content_key

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PEFT adapter: small matrices beside the weights of its base."""

    folder: Path
    base: Policy
    rank: int


def adapter_of(policy: Policy) -> Adapter | None:
    """The adapter that the policy is; None where it is a whole model. Raises ModelError."""
    if on_hub(policy):
        # Whether it is one is known by a small file: a whole model is left for the engine to fetch.
        from transformers.utils.peft_utils import find_adapter_config_file

        with wrap_model_errors(policy.path):
            if find_adapter_config_file(policy.path, revision=policy.revision) is None:
                return None
    folder = local_folder(policy)
    config = folder / _CONFIG
    return _read(config, policy.path) if config.is_file() else None


def _read(config: Path, name: str) -> Adapter:
    try:
        said = json.loads(config.read_text())
        kind, rank, base = said["peft_type"], said["r"], said["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the adapter {name} cannot be read: {config} is not what PEFT writes ({error!r})"
        ) from None
    if kind != "LORA" or said.get("rank_pattern") or said.get("alpha_pattern"):
        raise ModelError(
            f"the adapter {name} cannot be served: the engine knows LoRA with one rank and one"
            f" scale for all layers, and this is {kind} or has a rank_pattern or alpha_pattern."
            " Merge it into its base (`merge_and_unload`) and serve that"
        )
    if not base:
        raise ModelError(
            f"the adapter {name} does not say what it was trained on. Set base_model_name_or_path"
            f" in {config}"
        )
    if not config.with_name(_WEIGHTS).is_file():
        raise ModelError(
            f"the adapter {name} has no {_WEIGHTS} beside {config}. Save it with PEFT's"
            " `save_pretrained`; pickled weights (*.bin, *.pt) can hold code and are not read"
        )
    return Adapter(config.parent, Policy("base", base, said.get("revision")), rank)


def lora_kwargs(max_rank: int) -> dict[str, Any]:
    """vLLM's arguments for one adapter at a time of at most that rank."""
    room = next(rank for rank in _ENGINE_RANKS if rank >= max_rank)
    return {"enable_lora": True, "max_lora_rank": room, "max_loras": 1}


def check_adapter(adapter: Adapter, served: Policy, max_rank: int | None) -> None:
    """Refuse an adapter that an engine with the weights `served` and room for `max_rank` cannot
    take. Raises ModelError."""
    if max_rank is None:
        raise ModelError(
            f"the adapter {adapter.folder} cannot be loaded: the engine was started without LoRA."
            f" Set max_lora_rank: {adapter.rank} under this engine in resources"
        )
    if adapter.rank > max_rank:
        raise ModelError(
            f"the adapter {adapter.folder} has rank {adapter.rank}, and the engine has room for"
            f" {max_rank}. Set max_lora_rank: {adapter.rank} under this engine in resources"
        )
    if not same_weights(adapter.base, served):
        raise ModelError(
            f"the adapter {adapter.folder} belongs to {_name(adapter.base)}, and the engine serves"
            f" {_name(served)}: its matrices mean nothing beside other weights. Load its base first"
        )


def same_weights(one: Policy, other: Policy) -> bool:
    """By name and revision, by folder, or else by content."""
    if (one.path, one.revision) == (other.path, other.revision):
        return True
    here, there = (local_folder(policy).resolve() for policy in (one, other))
    if here == there:
        return True
    files, others = ({f.name: f for f in folder.glob("*.safetensors")} for folder in (here, there))
    if not files or files.keys() != others.keys():
        return False
    sizes = all(files[name].stat().st_size == others[name].stat().st_size for name in files)
    return sizes and all(_content(files[name]) == _content(others[name]) for name in files)


def _content(file: Path) -> str:
    """All of it: a part of the layers may be what was trained."""
    return content_key(file, sampled_above_bytes=sys.maxsize)


def _name(policy: Policy) -> str:
    return policy.path if policy.revision is None else f"{policy.path} at {policy.revision}"
