"""The losses, as pure functions of log-probabilities. This is the only file of `core` with torch.

Shapes: P pairs, the 2 of [P, 2] is (chosen, rejected); E examples of one completion each.
Log-probabilities are of whole completions, in nats; lengths are their tokens.

A loss is divided by the denominator of the *whole* optimizer batch, over all workers and
micro-batches, which its caller knows. So the losses, metrics and gradients of the micro-batches add
up to those of the batch, however it is split.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Metrics = dict[str, Tensor]
"""Detached scalars, each the micro-batch's share of the mean over the batch."""

PairLoss = Literal["sigmoid", "ipo", "robust", "simpo", "orpo"]
"""`sigmoid`: DPO (Rafailov et al. 2023, equation 7), cDPO with `label_smoothing` (Mitchell 2023,
equation 3). `ipo`: Azar et al. 2024, equation 17. `robust`: Chowdhury et al. 2024, equation 13.
`simpo`: Meng et al. 2024, equation 6. `orpo`: Hong et al. 2024, equations 6 and 7."""

REFERENCE_FREE: frozenset[str] = frozenset({"simpo", "orpo"})
"""Losses that do not use the reference."""


@dataclass(frozen=True, slots=True)
class PairSettings:
    """The settings of a preference loss."""

    loss: PairLoss
    beta: float
    """Strength of the regularisation to the reference; for ORPO, the weight of the odds ratio."""
    label_smoothing: float = 0.0
    """Assumed share of pairs with swapped labels (sigmoid, robust, simpo)."""
    length_normalised: bool = False
    """Use log-probabilities per token instead of per completion (sigmoid, ipo; always in simpo,
    orpo)."""
    simpo_margin: float = 0.0
    """SimPO's gamma."""
    nll_weight: float = 0.0
    """Weight of the chosen completion's length-normalised NLL (Pang et al. 2024, Iterative RPO,
    equation 2); ORPO always has it, with weight 1."""


def sft_loss(logps: Tensor, num_tokens: float) -> tuple[Tensor, Metrics]:
    """Return the loss of instruction tuning: L = - sum log pi(w_t | s_t, i), as a mean over
    completion tokens.

    Ranaldi and Freitas 2024, section 2.1. logps of any shape, of whole completions; `num_tokens` is
    the number of completion tokens of the whole optimizer batch.
    """
    loss = -logps.sum() / num_tokens
    return loss, {"loss": loss.detach().double()}


def pair_losses(
    logps: Tensor, reference: Tensor, lengths: Tensor, settings: PairSettings
) -> Tensor:
    """Return the preference loss of each pair, [P], without the NLL term; all arguments [P, 2].

    Student equal to reference gives ln 2 for `sigmoid` (any `label_smoothing`) and `robust`, and
    (1 / (2 beta))^2 for `ipo`. The losses of `REFERENCE_FREE` do not use `reference`.
    """
    beta, smooth = settings.beta, settings.label_smoothing
    if settings.loss == "orpo":
        odds = log_odds(logps / lengths)
        return -beta * F.logsigmoid(odds[:, 0] - odds[:, 1])
    if settings.loss == "simpo":
        means = logps / lengths
        margins = beta * (means[:, 0] - means[:, 1]) - settings.simpo_margin
    else:
        ratios = logps - reference
        if settings.length_normalised:
            ratios = ratios / lengths
        difference = ratios[:, 0] - ratios[:, 1]
        if settings.loss == "ipo":
            return (difference - 1 / (2 * beta)) ** 2
        margins = beta * difference
    right, wrong = -F.logsigmoid(margins), -F.logsigmoid(-margins)
    if settings.loss == "robust":
        return ((1 - smooth) * right - smooth * wrong) / (1 - 2 * smooth)
    return (1 - smooth) * right + smooth * wrong


def log_odds(mean_logps: Tensor) -> Tensor:
    """Return log(p / (1 - p)) for p = exp(mean log-probability per token), which is below 1."""
    below = mean_logps.clamp(max=-1e-6)
    return below - torch.log(-torch.expm1(below))


def preference_loss(
    logps: Tensor, reference: Tensor, lengths: Tensor, settings: PairSettings, num_pairs: float
) -> tuple[Tensor, Metrics]:
    """Self-refinement: the mean over pairs of

        preference loss - nll_weight / |y_w| * log pi(y_w | x)

    With `sigmoid`, the paper's: - log sigmoid(beta * (log pi(y_w|x) / ref(y_w|x)
    - log pi(y_l|x) / ref(y_l|x))). All of [P, 2]; `num_pairs` is the number of pairs of the whole
    optimizer batch. Rewards and margins are DPO's, whatever the loss.

    `kl` is the mean of log ref(y|x) - log pi(y|x) over both completions, in nats per completion
    (Schulman 2020, "Approximating KL Divergence", k1): an estimate of KL(reference || policy), as
    the completions are the reference's own samples. It is biased by every departure
    from that: a sampling temperature below 1, the choice of pairs, and the training on them; and it
    may be negative. k3 never is, but the exp of a whole completion's ratio has no usable variance.
    """
    preference = pair_losses(logps, reference, lengths, settings)
    losses = preference
    nll_weight = 1.0 if settings.loss == "orpo" else settings.nll_weight
    if nll_weight:
        losses = losses - nll_weight * logps[:, 0] / lengths[:, 0]
    rewards = settings.beta * (logps - reference)
    margins = rewards[:, 0] - rewards[:, 1]
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
        "chosen_length": lengths[:, 0],
        "rejected_length": lengths[:, 1],
        "kl": (reference - logps).mean(1),
    }
    metrics = {name: values.detach().double().sum() / num_pairs for name, values in shown.items()}
    return losses.sum() / num_pairs, metrics


@dataclass(frozen=True, slots=True)
class KtoSettings:
    """The settings of the KTO loss."""

    beta: float
    """How quickly an example's gain saturates."""
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class KtoBatch:
    """Quantities of the whole optimizer batch that the loss of each micro-batch needs."""

    kl: float
    """Estimate of the divergence of the policy from the reference (`kto_divergence`)."""
    num_desirable: int
    num_undesirable: int


def kto_divergence(logps: Tensor, reference: Tensor) -> float:
    """Return KTO's reference point z_0 = max(0, mean of log pi(y'|x) / ref(y'|x)).

    Ethayarajh et al. 2024, section 4.2. Both [E], of completions y' that were written to other
    questions than x; over the whole optimizer batch, without gradient.
    """
    return max(0.0, (logps - reference).mean().item())


def kto_losses(
    logps: Tensor, reference: Tensor, desirable: Tensor, kl: float, settings: KtoSettings
) -> Tensor:
    """Return the unpaired KTO loss of each example, [E] (Ethayarajh et al. 2024, equation 8).

    logps, reference [E]; desirable [E] (bool). Student equal to reference, with `kl` 0, gives half
    of each example's weight.
    """
    ratios = logps - reference
    signed = torch.where(desirable, ratios - kl, kl - ratios)
    weights = torch.where(desirable, settings.desirable_weight, settings.undesirable_weight)
    return weights * (1 - torch.sigmoid(settings.beta * signed))


def kto_loss(
    logps: Tensor, reference: Tensor, desirable: Tensor, batch: KtoBatch, settings: KtoSettings
) -> tuple[Tensor, Metrics]:
    """Return the mean of `kto_losses` over the examples of the whole optimizer batch; all of [E].

    Rewards are means over the desirable (`chosen`) and over the undesirable examples
    (`rejected`), and the margin is their difference. `accuracy` is the share of examples on the
    correct side of the divergence.
    """
    losses = kto_losses(logps, reference, desirable, batch.kl, settings)
    num_examples = batch.num_desirable + batch.num_undesirable
    ratios = (logps - reference).detach().double()
    rewards = settings.beta * ratios
    chosen = rewards[desirable].sum() / max(1, batch.num_desirable)
    rejected = rewards[~desirable].sum() / max(1, batch.num_undesirable)
    right = torch.where(desirable, ratios > batch.kl, ratios < batch.kl)
    loss = losses.sum() / num_examples
    return loss, {
        "loss": loss.detach().double(),
        "kl": torch.full_like(chosen, batch.kl * len(losses) / num_examples),
        "margin": chosen - rejected,
        "absolute_reward": rewards.abs().sum() / num_examples,
        "accuracy": right.double().sum() / num_examples,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "desirable": torch.full_like(chosen, desirable.sum().item() / num_examples),
    }
