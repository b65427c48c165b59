"""The two losses of the method, as pure functions of tensors. The one file of the core with torch.

Shapes: B sequences, T tokens of the longest, V vocabulary, P pairs; the 2 of [P, 2] is
(chosen, rejected). A mask is true on the completion's tokens; it comes from lengths, never from
comparing ids, because a tokenizer may pad with EOS.

A loss is divided by the denominator of the *whole* optimizer batch, over all workers and
micro-batches, which its caller knows. So losses, metrics and gradients of the parts add up to
those of the batch, however it is cut.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Metrics = dict[str, Tensor]
"""Detached scalars, each already a share of the batch's mean."""


def token_logps(logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """log pi(token | everything before it) in float32, [B, T - 1]; 0 outside the completions.

    logits [B, T, V], input_ids [B, T], completion_mask [B, T] (bool). Position t of the result
    belongs to token t + 1: the logits at t predict it. The first token of a sequence has no
    prediction, so a completion must not start at position 0.
    """
    targets = input_ids[:, 1:]
    mask = completion_mask[:, 1:]
    predicted = logits[:, :-1][mask].float()
    logps = -F.cross_entropy(predicted, targets[mask], reduction="none")
    result = torch.zeros(targets.shape, dtype=logps.dtype, device=logps.device)
    result[mask] = logps
    return result


def sequence_logps(logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """log pi(completion | prompt) in nats, [B]: the sum of `token_logps` over each completion."""
    return token_logps(logits, input_ids, completion_mask).sum(dim=-1)


def sft_loss(logps: Tensor, num_tokens: float) -> tuple[Tensor, Metrics]:
    """Instruction tuning: L = - sum log pi(w_t | s_t, i), as a mean over completion tokens.

    Ranaldi and Freitas 2024, section 2.1. logps [B] of whole completions; `num_tokens` is the
    number of completion tokens of the whole optimizer batch.
    """
    loss = -logps.sum() / num_tokens
    return loss, {"loss": loss.detach().double()}


@dataclass(frozen=True, slots=True)
class DpoSettings:
    beta: float
    """How strongly the student is held to the reference."""
    nll_weight: float = 0.0
    """Weight of the chosen completion's length-normalised NLL."""


def dpo_loss(
    logps: Tensor,
    reference_logps: Tensor,
    chosen_lengths: Tensor,
    settings: DpoSettings,
    num_pairs: float,
) -> tuple[Tensor, Metrics]:
    """Self-refinement: the mean over pairs of

        - log sigmoid(margin) - nll_weight / |y_w| * log pi(y_w | x)
        margin = beta * (log pi(y_w|x) / ref(y_w|x) - log pi(y_l|x) / ref(y_l|x))

    First term: Rafailov et al. 2023, equation 7; second: Pang et al. 2024 (Iterative RPO),
    equation 2. logps and reference_logps [P, 2] of whole completions, chosen_lengths [P] in
    tokens; `num_pairs` is the number of pairs of the whole optimizer batch. Student equal to
    reference gives margin 0 and, without the second term, ln 2.
    """
    rewards = settings.beta * (logps - reference_logps)
    margins = rewards[:, 0] - rewards[:, 1]
    preference = -F.logsigmoid(margins)
    losses = preference
    if settings.nll_weight:
        losses = losses - settings.nll_weight * logps[:, 0] / chosen_lengths
    shown = {
        "loss": losses,
        "preference_loss": preference,
        "margin": margins,
        "absolute_margin": margins.abs(),
        "accuracy": (margins > 0).float(),
        "chosen_reward": rewards[:, 0],
        "rejected_reward": rewards[:, 1],
        "chosen_logp": logps[:, 0],
        "rejected_logp": logps[:, 1],
    }
    metrics = {name: values.detach().double().sum() / num_pairs for name, values in shown.items()}
    return losses.sum() / num_pairs, metrics
