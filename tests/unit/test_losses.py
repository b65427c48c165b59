"""Losses by hand arithmetic."""

import math

import pytest
import torch
from torch import Tensor

from sirt_ray.core.losses import DpoSettings, dpo_loss, sequence_logps, sft_loss, token_logps

LOGITS = torch.tensor(
    [
        # V = 2; probabilities (1/2, 1/2), (1/4, 3/4), (1/5, 4/5), and a last row nobody reads.
        [[0.0, 0.0], [0.0, math.log(3)], [0.0, math.log(4)], [9.0, -9.0]],
        [[0.0, math.log(9)], [0.0, 0.0], [5.0, 5.0], [7.0, 7.0]],
    ]
)
IDS = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]])


def mask(*rows: str) -> Tensor:
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


def test_token_logps_are_shifted_by_one_and_zero_outside_the_completion() -> None:
    logps = token_logps(LOGITS, IDS, mask("..xx", ".x.."))
    expected = [[0.0, math.log(3 / 4), math.log(1 / 5)], [math.log(1 / 10), 0.0, 0.0]]
    torch.testing.assert_close(logps, torch.tensor(expected))


def test_sequence_logps_add_up_the_completion() -> None:
    logps = sequence_logps(LOGITS, IDS, mask("..xx", ".x.."))
    torch.testing.assert_close(logps, torch.tensor([math.log(3 / 20), math.log(1 / 10)]))


def test_logps_are_float32_whatever_the_logits_are() -> None:
    assert token_logps(LOGITS.bfloat16(), IDS, mask("..xx", ".x..")).dtype == torch.float32


def test_gradient_reaches_completion_logits_only() -> None:
    logits = LOGITS.clone().requires_grad_()
    sequence_logps(logits, IDS, mask("..xx", ".x..")).sum().backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[False, True, True, False], [True, False, False, False]]


def test_sft_loss_is_a_share_of_the_whole_batch() -> None:
    first, metrics = sft_loss(torch.tensor([-3.0, -5.0]), num_tokens=10)
    second, _ = sft_loss(torch.tensor([-2.0]), num_tokens=10)
    assert first.item() + second.item() == pytest.approx(1.0)
    assert metrics["loss"].item() == pytest.approx(0.8)


def dpo(
    policy: list[list[float]], reference: list[list[float]], num_pairs: int, **settings: float
) -> tuple[float, dict[str, float]]:
    loss, metrics = dpo_loss(
        torch.tensor(policy),
        torch.tensor(reference),
        torch.tensor([4.0] * len(policy)),
        DpoSettings(beta=settings.get("beta", 0.1), nll_weight=settings.get("nll_weight", 0.0)),
        num_pairs,
    )
    return loss.item(), {name: value.item() for name, value in metrics.items()}


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
    loss, _ = dpo_loss(logps, logps.detach(), torch.tensor([4.0]), DpoSettings(beta=0.1), 1)
    loss.backward()
    assert logps.grad is not None
    # -beta * (1 - sigmoid(0)) for chosen, the opposite for rejected.
    torch.testing.assert_close(logps.grad, torch.tensor([[-0.05, 0.05]]))
