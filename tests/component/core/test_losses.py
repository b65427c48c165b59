"""Losses by hand arithmetic."""

import math
from typing import Any

import pytest
import torch

from sirt_ray.core.losses import (
    KtoBatch,
    KtoSettings,
    PairSettings,
    kto_divergence,
    kto_loss,
    kto_losses,
    pair_losses,
    preference_loss,
    sft_loss,
)

LENGTHS = [4.0, 2.0]
"""Tokens of the chosen and of the rejected completion, in every pair."""


def test_sft_loss_is_a_share_of_the_whole_batch() -> None:
    first, metrics = sft_loss(torch.tensor([-3.0, -5.0]), num_tokens=10)
    second, _ = sft_loss(torch.tensor([-2.0]), num_tokens=10)
    assert first.item() + second.item() == pytest.approx(1.0)
    assert metrics["loss"].item() == pytest.approx(0.8)


def dpo(
    policy: list[list[float]], reference: list[list[float]], num_pairs: int, **settings: Any
) -> tuple[float, dict[str, float]]:
    loss, metrics = preference_loss(
        torch.tensor(policy),
        torch.tensor(reference),
        torch.tensor([LENGTHS] * len(policy)),
        PairSettings(**({"loss": "sigmoid", "beta": 0.1} | settings)),
        num_pairs,
    )
    return loss.item(), {name: value.item() for name, value in metrics.items()}


def pair_loss(policy: list[float], reference: list[float], **settings: Any) -> float:
    [loss] = pair_losses(
        torch.tensor([policy]),
        torch.tensor([reference]),
        torch.tensor([LENGTHS]),
        PairSettings(**({"loss": "sigmoid", "beta": 0.1} | settings)),
    )
    return loss.item()


def test_dpo_loss_is_ln_2_where_student_and_reference_agree() -> None:
    logps = [[-7.0, -3.0], [-20.0, -90.0]]
    loss, metrics = dpo(logps, logps, num_pairs=2)
    assert loss == pytest.approx(math.log(2), abs=1e-7)
    assert metrics["margin"] == 0.0


def test_dpo_loss_by_hand() -> None:
    # chosen gains 2 nats, rejected loses 3: margin 0.2 * 5 = 1.
    loss, metrics = dpo([[-8.0, -9.0]], [[-10.0, -6.0]], num_pairs=1, beta=0.2)
    assert loss == pytest.approx(math.log(1 + math.exp(-1)))
    assert metrics == pytest.approx(
        {
            "loss": loss,
            "preference_loss": loss,
            "margin": 1.0,
            "absolute_margin": 1.0,
            "accuracy": 1.0,
            "chosen_reward": 0.4,
            "rejected_reward": -0.6,
            "chosen_logp": -8.0,
            "rejected_logp": -9.0,
            "chosen_length": 4.0,
            "rejected_length": 2.0,
            "kl": 0.5,
        }
    )


def test_nll_term_is_the_chosen_completions_mean_over_its_tokens() -> None:
    logps = [[-8.0, -9.0]]
    loss, metrics = dpo(logps, logps, num_pairs=1, nll_weight=0.5)
    assert loss == pytest.approx(math.log(2) + 0.5 * 8 / 4)
    assert metrics["preference_loss"] == pytest.approx(math.log(2))


def test_dpo_parts_add_up_to_the_batch() -> None:
    policy, reference = [[-8.0, -9.0], [-3.0, -1.0]], [[-9.0, -9.0], [-1.0, -2.0]]
    whole, metrics = dpo(policy, reference, num_pairs=2)
    parts = [dpo(policy[n : n + 1], reference[n : n + 1], num_pairs=2) for n in (0, 1)]
    assert whole == pytest.approx(sum(loss for loss, _ in parts))
    assert metrics["accuracy"] == sum(shown["accuracy"] for _, shown in parts) == 0.5


def test_dpo_gradient_raises_chosen_and_lowers_rejected() -> None:
    logps = torch.tensor([[-8.0, -9.0]], requires_grad=True)
    lengths = torch.tensor([LENGTHS])
    loss, _ = preference_loss(logps, logps.detach(), lengths, PairSettings("sigmoid", 0.1), 1)
    loss.backward()
    assert logps.grad is not None
    # -beta * (1 - sigmoid(0)) for chosen, the opposite for rejected.
    torch.testing.assert_close(logps.grad, torch.tensor([[-0.05, 0.05]]))


# The chosen completion gains 2 nats on the reference and the rejected one loses 3; 4 and 2 tokens.
POLICY, REFERENCE = [-8.0, -9.0], [-10.0, -6.0]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"beta": 0.2}, softplus(-1.0)),
        ({"beta": 0.2, "label_smoothing": 0.1}, 0.9 * softplus(-1.0) + 0.1 * softplus(1.0)),
        # 2 / 4 tokens + 3 / 2 tokens.
        ({"beta": 0.2, "length_normalised": True}, softplus(-0.4)),
        ({"loss": "ipo", "beta": 0.2}, (5.0 - 2.5) ** 2),
        ({"loss": "ipo", "beta": 0.2, "length_normalised": True}, (2.0 - 2.5) ** 2),
        (
            {"loss": "robust", "beta": 0.2, "label_smoothing": 0.1},
            (0.9 * softplus(-1.0) - 0.1 * softplus(1.0)) / 0.8,
        ),
        # -8 / 4 tokens against -9 / 2 tokens: 2.5 nats a token ahead.
        ({"loss": "simpo", "beta": 2.0, "simpo_margin": 1.5}, softplus(-(2.0 * 2.5 - 1.5))),
    ],
)
def test_pair_losses_by_hand(settings: dict[str, Any], expected: float) -> None:
    assert pair_loss(POLICY, REFERENCE, **settings) == pytest.approx(expected, rel=1e-6)


def test_orpo_by_hand() -> None:
    # Mean probabilities a token of 1/2 and 1/4: odds of 1 and 1/3.
    policy = [4 * math.log(1 / 2), 2 * math.log(1 / 4)]
    loss, metrics = dpo([policy], [[0.0, 0.0]], num_pairs=1, loss="orpo")
    preference = 0.1 * math.log(1 + 1 / 3)
    assert metrics["preference_loss"] == pytest.approx(preference, rel=1e-5)
    assert loss == pytest.approx(preference + math.log(2), rel=1e-5)


def test_a_token_that_is_certain_leaves_the_odds_finite() -> None:
    assert math.isfinite(pair_loss([0.0, -1.0], [0.0, 0.0], loss="orpo"))


def test_losses_where_student_and_reference_agree() -> None:
    for settings in ({}, {"label_smoothing": 0.3}, {"loss": "robust", "label_smoothing": 0.3}):
        assert pair_loss(POLICY, POLICY, **settings) == pytest.approx(math.log(2))
    assert pair_loss(POLICY, POLICY, loss="ipo", beta=0.5) == pytest.approx(1.0)


def test_kto_by_hand() -> None:
    settings = KtoSettings(beta=0.2, undesirable_weight=0.5)
    desirable = torch.tensor([True, False])
    losses = kto_losses(torch.tensor(POLICY), torch.tensor(REFERENCE), desirable, 0.5, settings)
    # 2 nats gained less 0.5; 0.5 and 3 nats lost.
    expected = [1 - 1 / (1 + math.exp(-0.3)), 0.5 * (1 - 1 / (1 + math.exp(-0.7)))]
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)


def test_kto_parts_add_up_to_the_batch() -> None:
    logps, reference = torch.tensor([-8.0, -9.0, -3.0]), torch.tensor([-10.0, -6.0, -5.0])
    desirable = torch.tensor([True, False, True])
    batch, settings = KtoBatch(0.5, 2, 1), KtoSettings(beta=0.2)

    def kto(part: slice) -> dict[str, float]:
        loss, metrics = kto_loss(logps[part], reference[part], desirable[part], batch, settings)
        assert loss.item() == pytest.approx(metrics["loss"].item())
        return {name: value.item() for name, value in metrics.items()}

    whole, parts = kto(slice(3)), [kto(slice(1)), kto(slice(1, 3))]
    assert whole == pytest.approx({name: sum(part[name] for part in parts) for name in whole})
    # Desirable ones gain 2 nats each, the undesirable one loses 3; the policy gained 0.5.
    assert {name: whole[name] for name in ("kl", "margin", "accuracy", "desirable")} == (
        pytest.approx({"kl": 0.5, "margin": 0.2 * 5, "accuracy": 1.0, "desirable": 2 / 3})
    )


def test_ktos_divergence_is_the_mismatched_mean_and_never_below_0() -> None:
    logps, reference = torch.tensor([-4.0, -7.0]), torch.tensor([-7.0, -6.0])
    assert kto_divergence(logps, reference) == 1.0
    assert kto_divergence(reference, logps) == 0.0
