"""LoRA adapters on a running engine: the contents of an adapter's folder, and whether an engine
that was started with certain weights can load it."""

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
"""Ranks for which vLLM reserves memory."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PEFT adapter: small matrices that are added to the weights of its base."""

    folder: Path
    base: Policy
    rank: int


def adapter_of(policy: Policy) -> Adapter | None:
    """Return the adapter that the policy is; None for a whole model. Raises ModelError."""
    if on_hub(policy):
        # A small file distinguishes them: a whole model is left for the engine to fetch.
        from transformers.utils.peft_utils import find_adapter_config_file

        with wrap_model_errors(policy.path):
            if find_adapter_config_file(policy.path, revision=policy.revision) is None:
                return None
    folder = local_folder(policy)
    config = folder / _CONFIG
    return _read(config, policy.path) if config.is_file() else None


def _read(config: Path, name: str) -> Adapter:
    try:
        settings = json.loads(config.read_text())
        kind, rank = settings["peft_type"], settings["r"]
        base = settings["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the adapter {name} cannot be read: {config} is not what PEFT writes ({error!r})"
        ) from None
    if kind != "LORA" or settings.get("rank_pattern") or settings.get("alpha_pattern"):
        raise ModelError(
            f"the adapter {name} cannot be served: the engine knows LoRA with one rank and one"
            f" scale for all layers, and this is {kind} or has a rank_pattern or alpha_pattern."
            " Merge it into its base (`merge_and_unload`) and serve that"
        )
    if not base:
        raise ModelError(
            f"the adapter {name} does not name the model that it was trained on. Set"
            f" base_model_name_or_path in {config}"
        )
    if not config.with_name(_WEIGHTS).is_file():
        raise ModelError(
            f"the adapter {name} has no {_WEIGHTS} next to {config}. Save it with PEFT's"
            " `save_pretrained`; pickled weights (*.bin, *.pt) can hold code and are not read"
        )
    return Adapter(config.parent, Policy("base", base, settings.get("revision")), rank)


def lora_kwargs(max_rank: int) -> dict[str, Any]:
    """Return vLLM's arguments for one adapter at a time of at most that rank."""
    engine_rank = next(rank for rank in _ENGINE_RANKS if rank >= max_rank)
    return {"enable_lora": True, "max_lora_rank": engine_rank, "max_loras": 1}


def check_adapter(adapter: Adapter, served: Policy, max_rank: int | None) -> None:
    """Raise ModelError for an adapter that an engine with the weights `served` and memory for
    `max_rank` cannot load; None: without LoRA."""
    if max_rank is None:
        raise ModelError(
            f"the adapter {adapter.folder} cannot be loaded: the engine was started without LoRA."
            f" Set max_lora_rank: {adapter.rank} under this engine in resources"
        )
    if adapter.rank > max_rank:
        raise ModelError(
            f"the adapter {adapter.folder} has rank {adapter.rank}, and the engine has memory for"
            f" rank {max_rank}. Set max_lora_rank: {adapter.rank} under this engine in resources"
        )
    if not same_weights(adapter.base, served):
        raise ModelError(
            f"the adapter {adapter.folder} belongs to {_name(adapter.base)}, and the engine serves"
            f" {_name(served)}: its matrices mean nothing with other weights. Load its base first"
        )


def same_weights(one: Policy, other: Policy) -> bool:
    """Return whether two policies are the same, by name and revision, by folder, or by content."""
    if (one.path, one.revision) == (other.path, other.revision):
        return True
    folders = [local_folder(policy).resolve() for policy in (one, other)]
    if folders[0] == folders[1]:
        return True
    files, others = ({f.name: f for f in folder.glob("*.safetensors")} for folder in folders)
    if not files or files.keys() != others.keys():
        return False
    sizes = all(files[name].stat().st_size == others[name].stat().st_size for name in files)
    return sizes and all(_content(files[name]) == _content(others[name]) for name in files)


def _content(file: Path) -> str:
    """Return a key of the whole content: the training may have changed a part of the layers."""
    return content_key(file, sampled_above_bytes=sys.maxsize)


def _name(policy: Policy) -> str:
    return policy.path if policy.revision is None else f"{policy.path} at {policy.revision}"
