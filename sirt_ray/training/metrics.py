"""What an optimizer step puts through the model, and how much of the device that uses."""

import resource
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from sirt_ray.core.encoding import TrainingExample
from sirt_ray.planning import gpus
from sirt_ray.training.batching import Part, num_tokens

# FOLDED training.health: Signs of a training that goes wrong while its loss falls. Each has a name, a rule and words.
#
# A warning is raised once, at the first step whose line meets the rule; that line and all later ones
# name it with that step. The rules look at lines and training data only, so a resumed training raises
# the same warnings at the same steps.

Line = Mapping[str, Any]
"""Of `metrics.jsonl`."""

WINDOW = 10
"""Lines that are taken together."""

LARGEST_FALL = 0.1
"""Nats for each token: what a chosen completion may lose. The student's perplexity on the texts it
is to prefer has risen by a tenth then."""

LENGTH_RATIOS = (0.8, 1.25)
"""Mean tokens of chosen to those of rejected completions, between which length tells little."""

WORDS = {
    "chosen_logp_falls": (
        "the chosen completions have become less likely than before the training, by more than"
        f" {LARGEST_FALL} nats a token in the median of {WINDOW} steps. A margin that grows all the"
        " same does so by lowering both sides, and probability goes to texts that are in no pair."
        " Add refine.nll_weight (1 is usual), or lower refine.learning_rate, or raise refine.beta"
    ),
    "length_drift": (
        "the chosen completions are much longer or much shorter than the rejected ones (mean tokens"
        f" outside {LENGTH_RATIOS[0]} to {LENGTH_RATIOS[1]} times theirs). The loss sums over"
        " tokens, so it can fall by length alone. Where reasoning is preferred to bare answers"
        " (pairs.rule dpo_cot) the difference is meant; else set refine.length_normalised, or"
        " choose the loss simpo, or pairs.rule correctness"
    ),
}
"""What it is, why it matters, what to do."""


def length_ratio(examples: Iterable[TrainingExample]) -> float:
    """Tokens of the chosen completions over those of the rejected ones."""
    chosen = rejected = 0
    for example in examples:
        first, second = example.sequences
        chosen += len(first.completion_ids)
        rejected += len(second.completion_ids)
    return chosen / rejected


def drifts(ratio: float) -> bool:
    return not LENGTH_RATIOS[0] <= ratio <= LENGTH_RATIOS[1]


def chosen_fall(recent: Sequence[Line], beta: float) -> float:
    """By how many nats a token the chosen completions are less likely than before the first step:
    the median of the newest lines, as a single step may be far off. Lines that are not there yet
    count as no fall.

    Measured against the reference, which the student was then: two batches have other completions,
    but a completion is always compared with itself.
    """
    falls = [-line["chosen_reward"] / beta / line["chosen_length"] for line in recent[-WINDOW:]]
    return statistics.median([0.0] * (WINDOW - len(falls)) + falls)


def raised(before: Line | None, names: Iterable[str], step: int) -> dict[str, int]:
    """Warning -> the step that raised it, for the line of `step`. `before`: the line before it."""
    already: Mapping[str, int] = (before or {}).get("warnings", {})
    return {**dict.fromkeys(names, step), **already}


def described(warnings: Mapping[str, int]) -> list[dict[str, Any]]:
    """For the artifact's record."""
    return [{"name": name, "step": step, "message": WORDS[name]} for name, step in warnings.items()]


# FOLDED training.memory: The most memory that a worker has held.


def peak_memory_gib(device: torch.device) -> float:
    """GiB: on a GPU what torch has had allocated there at most, else the resident set of this
    process at its largest, both since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


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
