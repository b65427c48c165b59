"""Shapes and sizes of models, from their config.json or, for a few, as published.

Parameters are counted from the shapes, so that a count can be checked by hand; for a folder with
weights, from the headers of the weights.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

_FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")
"""Values of `model_type` whose layers can be counted: those with gated feed-forward parts."""
_QK_NORM = ("qwen3", "qwen3_moe")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of layers with attention and a gated feed-forward part.

    Example: Llama-2-7B is `ModelShape("llama2", 32, 4096, 11008, 32, 32, 128, 32000)`, and its
    `parameters` are 6,738,415,616.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    """Width of the feed-forward part; of one expert in a mixture of experts."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    """Whether embedding and head are the same weights."""
    experts: int = 1
    experts_per_token: int = 1
    qk_norm: bool = False
    max_length: int = 4096
    source: str = ""
    """Where the shape was read from."""
    counted: int | None = None
    """Number of parameters in the headers of the weights."""
    quantized_bytes: int | None = None
    """Bytes of the weights, if the checkpoint itself is quantised."""

    @property
    def queries(self) -> int:
        """Width of all heads' queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all heads' keys."""
        return self.kv_heads * self.head_dim

    @property
    def head(self) -> int:
        """Parameters of the head; the embedding has as many."""
        return self.vocabulary * self.hidden

    @property
    def outside(self) -> int:
        """Parameters of embedding and head together."""
        return self.head if self.tied else 2 * self.head

    @property
    def linear(self) -> int:
        """Parameters of the layers' matrices."""
        return self.layers * (self._attention + self.experts * self._expert)

    @property
    def parameters(self) -> int:
        """All parameters. The biases of some models are left out: a millionth."""
        if self.counted is not None:
            return self.counted
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        routers = self.experts * self.hidden if self.experts > 1 else 0
        return self.outside + self.linear + self.layers * (norms + routers) + self.hidden

    @property
    def active(self) -> int:
        """Parameters of the layers that are active for a token."""
        return self.layers * (self._attention + self.experts_per_token * self._expert)

    def lora(self, rank: int) -> int:
        """Return the parameters of LoRA adapters to all matrices of the layers (Hu et al. 2021):
        rank x (in + out) each."""
        h, q, k, f = self.hidden, self.queries, self.keys, self.intermediate
        attention = (h + q) + 2 * (h + k) + (q + h)
        return rank * self.layers * (attention + self.experts * 3 * (h + f))

    def kv_bytes(self, shards: int = 1, value_bytes: int = 2) -> int:
        """Return the bytes of the KV cache for one token on one of `shards` GPUs: 2 (key and value)
        x layers x KV heads per GPU (at least 1) x head size x bytes of a value."""
        heads = max(1, math.ceil(self.kv_heads / shards))
        return 2 * self.layers * heads * self.head_dim * value_bytes

    @property
    def _attention(self) -> int:
        return self.hidden * (2 * self.queries + 2 * self.keys)

    @property
    def _expert(self) -> int:
        return 3 * self.hidden * self.intermediate


_PUBLISHED = {
    shape.name: shape
    for shape in (
        ModelShape("meta-llama/Llama-2-7b-chat-hf", 32, 4096, 11008, 32, 32, 128, 32000),
        ModelShape("meta-llama/Llama-2-13b-chat-hf", 40, 5120, 13824, 40, 40, 128, 32000),
        ModelShape("meta-llama/Llama-2-70b-chat-hf", 80, 8192, 28672, 64, 8, 128, 32000),
        ModelShape(
            "mistralai/Mistral-7B-Instruct-v0.1", 32, 4096, 14336, 32, 8, 128, 32000,
            max_length=32768,
        ),
        ModelShape(
            "mistralai/Mixtral-8x7B-Instruct-v0.1", 32, 4096, 14336, 32, 8, 128, 32000,
            experts=8, experts_per_token=2, max_length=32768,
        ),
        ModelShape(
            "Qwen/Qwen3-30B-A3B-Instruct-2507", 48, 2048, 768, 32, 4, 128, 151936,
            experts=128, experts_per_token=8, qk_norm=True, max_length=262144,
        ),
        ModelShape(
            "Qwen/Qwen3-1.7B-Base", 28, 2048, 6144, 16, 8, 128, 151936,
            tied=True, qk_norm=True, max_length=32768,
        ),
        ModelShape(
            "Qwen/Qwen3-4B-Base", 36, 2560, 9728, 32, 8, 128, 151936,
            tied=True, qk_norm=True, max_length=32768,
        ),
        ModelShape(
            "Qwen/Qwen3-4B-Instruct-2507", 36, 2560, 9728, 32, 8, 128, 151936,
            tied=True, qk_norm=True, max_length=262144,
        ),
        ModelShape(
            "Qwen/Qwen3-0.6B-Base", 28, 1024, 3072, 16, 8, 128, 151936,
            tied=True, qk_norm=True, max_length=32768,
        ),
    )
}  # fmt: skip
"""The models of `jobs/`, from their config.json on the hub; the sums agree with the numbers of
parameters on their model cards."""


def shape_of(name: str, revision: str | None = None) -> ModelShape | None:
    """Return the model's shape: from its folder, else from the local cache of the hub, else as
    published. None if it is not known; no request is sent to the hub."""
    folder = Path(name)
    if folder.is_dir():
        return _from_folder(name, folder)
    cached = _cached(name, revision)
    if cached is not None and (shape := _from_folder(name, cached)) is not None:
        return shape
    published = _PUBLISHED.get(name)
    return published and replace(published, source="its published config")


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _from_folder(name: str, folder: Path) -> ModelShape | None:
    try:
        document: Any = json.loads((folder / "config.json").read_text())
        shape = configured_shape(
            name, document.get("text_config", document), f"{folder}/config.json"
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    if shape is None:
        return None
    counted, size = _weights(folder)
    quantized = size if "quantization_config" in document else None
    return replace(shape, counted=None if quantized else counted, quantized_bytes=quantized)


def configured_shape(name: str, config: Mapping[str, Any], source: str) -> ModelShape | None:
    """Return the shape from the content of a config.json; None if the model's family is not known
    or a number is missing. Raises TypeError or ValueError if a value is not a number."""
    if config.get("model_type") not in _FAMILIES:
        return None
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    if any(key not in config for key in keys):
        return None
    layers, hidden, heads, vocabulary = (int(config[key]) for key in keys)
    experts = int(config.get("num_local_experts") or config.get("num_experts") or 1)
    intermediate = config.get("moe_intermediate_size") or config.get("intermediate_size")
    return ModelShape(
        name,
        layers,
        hidden,
        int(cast(int, intermediate)),
        heads,
        int(config.get("num_key_value_heads") or heads),
        int(config.get("head_dim") or hidden // heads),
        vocabulary,
        tied=bool(config.get("tie_word_embeddings", False)),
        experts=experts,
        experts_per_token=int(config.get("num_experts_per_tok") or 1) if experts > 1 else 1,
        qk_norm=config["model_type"] in _QK_NORM,
        max_length=int(config.get("max_position_embeddings") or 4096),
        source=source,
    )


def _weights(folder: Path) -> tuple[int | None, int]:
    """Return the numbers in the tensors of `*.safetensors`, from their headers, and the bytes of
    the files. None if there are no files, or not all of them: a cache may be partial."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = set(json.loads(index.read_text())["weight_map"].values())
        if not named <= {file.name for file in files}:
            return None, 0
    numbers = 0
    for file in files:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                return None, 0
            header: dict[str, Any] = json.loads(opened.read(length))
        tensors = [entry for key, entry in header.items() if key != "__metadata__"]
        numbers += sum(math.prod(entry["shape"]) for entry in tensors)
    return numbers or None, sum(file.stat().st_size for file in files)
