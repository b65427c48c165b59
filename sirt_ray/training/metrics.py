"""The metrics of an optimizer step: throughput, memory, use of the device, and warnings.

A warning is raised if a training goes wrong while its loss falls: once, at the first step whose
line of `metrics.jsonl` matches the rule. That line and all later ones name it with that step. The
rules look at lines and training data only, so a resumed training raises the same warnings at the
same steps.
"""

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

Line = Mapping[str, Any]
"""One line of `metrics.jsonl`."""

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
"""Metrics of the machine: two runs of the same training differ in these metrics only."""

WARNING_WINDOW = 10
"""Lines over which a warning's rule takes the median."""

MAX_LOGP_DROP = 0.1
"""Largest loss of log-probability of a chosen completion, in nats per token, without a warning. At
it the student's perplexity on the texts that it is to prefer has risen by a tenth."""

LENGTH_RATIOS = (0.8, 1.25)
"""Range of the mean tokens of chosen over those of rejected completions without a warning."""

MAX_IDENTICAL_SHARE = 0.5
"""Largest share of examples whose two sides are the same text without a warning."""

WARNINGS = {
    "chosen_logp_falls": (
        "the chosen completions have become less likely than before the training, by more than"
        f" {MAX_LOGP_DROP} nats a token in the median of {WARNING_WINDOW} steps. A margin that"
        " grows all the same does so by lowering both sides, and probability goes to texts that are"
        " in no pair. Add refine.nll_weight (1 is usual), or lower refine.learning_rate, or raise"
        " refine.beta"
    ),
    "length_drift": (
        "the chosen completions are much longer or much shorter than the rejected ones (mean tokens"
        f" outside {LENGTH_RATIOS[0]} to {LENGTH_RATIOS[1]} times theirs). The loss sums over"
        " tokens, so it can fall by length alone. Where reasoning is preferred to bare answers"
        " (pairs.rule dpo_cot) the difference is meant; else set refine.length_normalised, or"
        " choose the loss simpo, or pairs.rule correctness"
    ),
    "identical_pairs": (
        f"more than {MAX_IDENTICAL_SHARE:.0%} of the examples prefer a completion to itself: what"
        " is chosen is also rejected after the same prompt. Their losses have no gradient, so"
        " nothing is learned from them. Look at the columns chosen and rejected, and make pairs of"
        " completions that differ"
    ),
}
"""Warning -> what is wrong, why it matters, and what to do."""


# Throughput and use of the device


@dataclass(frozen=True, slots=True)
class ForwardCounts:
    """What one batch puts through the model, over all workers and micro-batches."""

    positions: int
    """Positions computed, including padding and what idle workers run."""
    tokens: int
    """Positions that hold a token of a group."""
    unshared: int
    """Tokens if every sequence of every example went through the model by itself."""
    predicted: int
    """Completion tokens, for which the head is computed."""
    attended: int
    """(query, key) pairs that attend to each other, in one head of one layer."""

    @property
    def padding_share(self) -> float:
        """The share of the positions that hold no token."""
        return 1 - self.tokens / self.positions

    @property
    def shared_share(self) -> float:
        """The share of the tokens that sharing saves."""
        return 1 - self.tokens / self.unshared


def count_forward(turns: Sequence[Sequence[Part]], packed: bool) -> ForwardCounts:
    """Count what the micro-batches [turn][rank] of `batching.micro_batches` put through."""
    positions = tokens = unshared = predicted = attended = 0
    for part in chain.from_iterable(turns):
        positions += num_tokens(part, packed) if part else 1
        for group in part:
            prompt = len(group.prompt_ids)
            # The last token of a completion predicts nothing and is left out.
            added = [len(ids) - 1 for ids in group.completions]
            unshared += sum(prompt + added[at] for _, members in group.members for at in members)
            predicted += sum(added) + len(added)
            if packed:
                tokens += prompt + sum(added)
                attended += _causal(prompt) + sum(n * prompt + _causal(n) for n in added)
            else:
                tokens += sum(prompt + n for n in added)
                attended += sum(_causal(prompt + n) for n in added)
    return ForwardCounts(positions, tokens, unshared, predicted, attended)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The sizes that decide how many operations a token takes."""

    body: int
    """Parameters except the embedding and the head."""
    trained_body: int
    """Parameters of `body` that have gradients: all, or LoRA's adapters."""
    head: int
    """Parameters of the head."""
    head_trained: bool
    attention: int
    """Layers times heads times the dimension of a head."""

    def flops(self, done: ForwardCounts) -> float:
        """Return the operations of forward and backward.

        They are 6 per parameter and token (Kaplan et al. 2020, section 2.1) minus the 2 for
        gradients that frozen parameters do not have, plus those of attention. Padding is not
        counted, nor what is computed a second time to save memory; the limit of a sliding window is
        not taken into account.
        """
        body = (4 * self.body + 2 * self.trained_body) * done.tokens
        head = (6 if self.head_trained else 4) * self.head * done.predicted
        return float(body + head + 12 * self.attention * done.attended)


def model_size(model: Any) -> ModelSize | None:
    """Return the sizes of a whole Hugging Face model, or of PEFT's wrapper of one.

    None for a mixture of experts, which uses only some of its parameters for a token.
    """
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
        body=sum(map(_num_parameters, inside)),
        trained_body=sum(weight.numel() for weight in inside if weight.requires_grad),
        head=sum(weight.numel() for weight in head),
        head_trained=any(weight.requires_grad for weight in head),
        attention=config.num_hidden_layers * heads * width,
    )


def _num_parameters(weight: Any) -> int:
    """Count the parameters; of a 4-bit matrix, in which bitsandbytes packs two per byte, both."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else state.shape.numel()


def peak_flops(device_name: str) -> float | None:
    """Return the peak of bfloat16 operations per second; None if unknown, as for a MIG slice."""
    gpu = gpus.by_device(device_name)
    return None if gpu is None else gpu.peak_flops


def device_peak(device: torch.device) -> float | None:
    """Return the peak of bfloat16 operations per second of a GPU; None for the CPU."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def _causal(length: int) -> int:
    """Count the (query, key) pairs of a causal sequence."""
    return length * (length + 1) // 2


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory since the process started, in GiB: on a GPU what torch has allocated,
    on the CPU the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


# Warnings


def length_ratio(examples: Iterable[TrainingExample]) -> float:
    """Return the tokens of the chosen completions over those of the rejected ones."""
    chosen = rejected = 0
    for example in examples:
        first, second = example.sequences
        chosen += len(first.completion_ids)
        rejected += len(second.completion_ids)
    return chosen / rejected


def length_drifts(ratio: float) -> bool:
    """Return whether a ratio of lengths is outside `LENGTH_RATIOS`."""
    return not LENGTH_RATIOS[0] <= ratio <= LENGTH_RATIOS[1]


def identical_share(examples: Sequence[TrainingExample]) -> float:
    """Return the share of pairs whose chosen completion is their rejected one."""
    return sum(one == other for one, other in (e.sequences for e in examples)) / len(examples)


def contradicted_share(examples: Sequence[TrainingExample]) -> float:
    """Return the share of single completions that are both desirable and undesirable."""
    sides = [{e.sequences[0] for e in examples if e.desirable == side} for side in (True, False)]
    return sum(e.sequences[0] in sides[0] & sides[1] for e in examples) / len(examples)


def chosen_logp_drop(recent: Sequence[Line], beta: float) -> float:
    """Return by how many nats per token the chosen completions are less likely than before the
    first step: the median over the newest lines, as a single step may be far off. Missing lines
    count as no drop.

    The drop is measured against the reference, which the student was before the first step: two
    batches have different completions, but a completion is always compared with itself.
    """
    drops = [
        -line["chosen_reward"] / beta / line["chosen_length"] for line in recent[-WARNING_WINDOW:]
    ]
    return statistics.median([0.0] * (WARNING_WINDOW - len(drops)) + drops)


def raised_warnings(before: Line | None, names: Iterable[str], step: int) -> dict[str, int]:
    """Return warning -> the step that raised it, for the line of `step`; `before` is the line
    before it."""
    already: Mapping[str, int] = (before or {}).get("warnings", {})
    return {**dict.fromkeys(names, step), **already}


def warning_records(warnings: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the warnings with their messages, for the artifact's record."""
    return [
        {"name": name, "step": step, "message": WARNINGS[name]} for name, step in warnings.items()
    ]
