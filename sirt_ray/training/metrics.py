"""What an optimizer step puts through the model, and how much of the device that uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from sirt_ray.planning import gpus
from sirt_ray.training.batching import Part, num_tokens

MEASURED = frozenset(
    {
        "seconds",
        "tokens_per_second",
        "pairs_per_second",
        "examples_per_second",
        "mfu",
        "peak_memory_gib",
    }
)
"""Metrics of the machine: two runs of the same training differ in them and in no other."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """One batch, over all workers and micro-batches."""

    places: int
    """Computed, with padding and what idle workers run."""
    tokens: int
    """Places with a token of a group."""
    alone: int
    """Tokens if every sequence of every example went through by itself."""
    predicted: int
    """Completion tokens: where the head is needed."""
    attended: int
    """(query, key) pairs that see each other, in one head of one layer."""

    @property
    def padding_share(self) -> float:
        return 1 - self.tokens / self.places

    @property
    def shared_share(self) -> float:
        return 1 - self.tokens / self.alone


def forwarded(turns: Sequence[Sequence[Part]], packed: bool) -> Forwarded:
    """Of the micro-batches [turn][rank] that `batching.micro_batches` cuts."""
    places = tokens = alone = predicted = attended = 0
    for part in chain.from_iterable(turns):
        places += num_tokens(part, packed) if part else 1
        for group in part:
            prompt = len(group.prompt_ids)
            # The last token of a completion predicts nothing and is not put in.
            added = [len(ids) - 1 for ids in group.completions]
            alone += sum(prompt + added[at] for _, members in group.members for at in members)
            predicted += sum(added) + len(added)
            if packed:
                tokens += prompt + sum(added)
                attended += _causal(prompt) + sum(n * prompt + _causal(n) for n in added)
            else:
                tokens += sum(prompt + n for n in added)
                attended += sum(_causal(prompt + n) for n in added)
    return Forwarded(places, tokens, alone, predicted, attended)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What decides how many operations a token takes."""

    body: int
    """Parameters other than the embedding and the head."""
    trained_body: int
    """Those of them that have gradients: all, or LoRA's adapters."""
    head: int
    head_trained: bool
    attention: int
    """Layers times heads times the size of a head."""

    def flops(self, done: Forwarded) -> float:
        """Operations of forward and backward, 6 for each parameter and token (Kaplan et al. 2020,
        section 2.1) less the 2 for gradients that frozen parameters do not get, and those of
        attention. Padding is not counted, nor what is computed a second time to save memory; a
        sliding window's limit is not taken into account.
        """
        body = (4 * self.body + 2 * self.trained_body) * done.tokens
        head = (6 if self.head_trained else 4) * self.head * done.predicted
        return float(body + head + 12 * self.attention * done.attended)


def model_size(model: Any) -> ModelSize | None:
    """Of a whole Hugging Face model, or PEFT's wrapper of one. None for a mixture of experts, which
    uses only some of its parameters for a token."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    config = inner.config.get_text_config()
    if getattr(config, "num_experts_per_tok", None):
        return None
    outside = {
        id(weight): weight
        for module in (inner.get_input_embeddings(), inner.get_output_embeddings())
        for weight in module.parameters()
    }
    inside = [weight for weight in model.parameters() if id(weight) not in outside]
    head = list(inner.get_output_embeddings().parameters())
    heads = getattr(config, "num_attention_heads", 0)
    width = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
    return ModelSize(
        body=sum(map(_numbers, inside)),
        trained_body=sum(weight.numel() for weight in inside if weight.requires_grad),
        head=sum(weight.numel() for weight in head),
        head_trained=any(weight.requires_grad for weight in head),
        attention=config.num_hidden_layers * heads * width,
    )


def _numbers(weight: Any) -> int:
    """Of a matrix in 4 bits those that it stands for: bitsandbytes packs two in a byte."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else state.shape.numel()


def peak_flops(device_name: str) -> float | None:
    """bfloat16 operations a second at best; None where that is not known, as of a part of a GPU."""
    gpu = gpus.by_device(device_name)
    return None if gpu is None else gpu.peak_flops


def device_peak(device: torch.device) -> float | None:
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def _causal(length: int) -> int:
    return length * (length + 1) // 2
