"""Packed = padded = one pair at a time, for each architecture that can; others are detected."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as Models
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from sirt_ray.config.training import LoraConfig
from sirt_ray.core.encoding import TokenSequence, TrainingExample
from sirt_ray.core.losses import PairSettings, preference_loss
from sirt_ray.training import attention, forward
from sirt_ray.training.batching import grouped, micro_batch
from sirt_ray.training.capabilities import probe
from sirt_ray.training.forward import CompletionLogps, ModelCapabilities
from sirt_ray.training.model import add_lora
from sirt_ray.training.tasks import Source
from tests.helpers import tiny

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,  # As decided as a trained model, so that every token matters.
}
PACKABLE = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=9),
    "gpt2": GPT2Config(
        vocab_size=101, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4, resid_pdrop=0.0
    ),
}


def model(config: Any, dtype: torch.dtype = torch.float64) -> Any:
    attention.register()
    torch.manual_seed(0)
    made = Models.from_config(config, dtype=dtype, attn_implementation=attention.PACKED).eval()
    for norm in made.modules():
        if (
            type(norm).__name__ in ("LlamaRMSNorm", "Qwen3RMSNorm", "MistralRMSNorm")
            and dtype == torch.float64
        ):
            # `transformers` computes it in float32, which would hide differences of 1e-9.
            norm.forward = partial(_rms_norm, norm)
    return made


def _rms_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.rms_norm(
        hidden, norm.weight.shape, norm.weight, norm.variance_epsilon
    )


def ids(count: int, seed: int) -> tuple[int, ...]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(101, (count,), generator=draw).tolist())


def pairs() -> list[TrainingExample]:
    """Three questions; completions used by one pair, by several, on both lengths' extremes."""
    made: list[TrainingExample] = []
    for question, (prompt, lengths, picks) in enumerate(
        [
            (ids(11, 1), (7, 12, 1, 5), [(0, 1), (2, 1), (0, 3), (2, 3)]),
            (ids(5, 2), (9, 4), [(0, 1)]),
            (ids(1, 3), (2, 14, 14), [(1, 0), (2, 0)]),
        ]
    ):
        completions = [ids(count, 10 * question + n) for n, count in enumerate(lengths)]
        for chosen, rejected in picks:
            both = tuple(TokenSequence(prompt, completions[n]) for n in (chosen, rejected))
            made.append(TrainingExample(str(question), both, (-20.0 - question, -30.0)))
    return made


def grouped_loss(made: Any, examples: list[TrainingExample], packed: bool, limit: int) -> Any:
    """The mean DPO loss as the trainer computes it, one micro-batch after the other."""
    module = CompletionLogps(made, ModelCapabilities(packed, separate_head=True))
    total = torch.zeros((), dtype=torch.float64)
    for group in grouped(examples, range(len(examples)), limit):
        batch = micro_batch([group], packed, CPU)
        logps = batch.per_sequence(module(batch))
        total = total + loss([examples[n] for n in batch.numbers], logps)
    return total / len(examples)


def loss(examples: list[TrainingExample], logps: torch.Tensor) -> torch.Tensor:
    reference = torch.tensor([e.reference_logps for e in examples], dtype=torch.float64)
    lengths = torch.ones_like(reference)
    return preference_loss(logps, reference, lengths, PairSettings("sigmoid", 0.1), 1)[0]


def one_at_a_time(made: Any, examples: list[TrainingExample]) -> torch.Tensor:
    """Each pair by itself, unpadded, by the model's own logits."""
    losses = [loss([e], tiny.completion_logps(made, e.sequences)[None]) for e in examples]
    return torch.stack(losses).mean()


def gradients(made: Any, compute: Callable[[], torch.Tensor]) -> tuple[float, dict[str, Any]]:
    made.zero_grad()
    value = compute()
    value.backward()
    found = {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
    return value.item(), found


@pytest.mark.parametrize(
    ("name", "limit", "packed"),
    [(name, 10_000, True) for name in PACKABLE]
    + [("llama", 20, True), ("llama", 20, False), ("qwen3", 10_000, False)],
)
def test_groups_give_the_loss_and_every_gradient_of_single_pairs(
    name: str, limit: int, packed: bool
) -> None:
    made, examples = model(PACKABLE[name]), pairs()
    value, found = gradients(made, lambda: grouped_loss(made, examples, packed, limit))
    expected, wanted = gradients(made, lambda: one_at_a_time(made, examples))
    assert value == pytest.approx(expected, abs=1e-9)
    assert found.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(found[parameter], gradient, atol=1e-9, rtol=0, msg=parameter)


def test_adapters_get_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    made = add_lora(model(PACKABLE["llama"]), LoraConfig(rank=2), Source("here"), seed=0)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:  # Zero at the start, where no gradient would reach lora_A.
            torch.nn.init.normal_(parameter, std=0.1)
    made = made.double().eval()
    examples = pairs()
    value, found = gradients(made, lambda: grouped_loss(made, examples, True, 10_000))
    expected, wanted = gradients(made, lambda: one_at_a_time(made, examples))
    assert value == pytest.approx(expected, abs=1e-9)
    assert found.keys() == wanted.keys() and all("lora" in name for name in found)
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(found[parameter], gradient, atol=1e-9, rtol=0)


def test_head_in_chunks_gives_what_the_whole_head_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    made, examples = model(PACKABLE["llama"]), pairs()
    whole = gradients(made, lambda: grouped_loss(made, examples, True, 10_000))
    monkeypatch.setattr(forward, "_CHUNK_BYTES", 3 * 4 * 101)
    value, found = gradients(made, lambda: grouped_loss(made, examples, True, 10_000))
    assert value == pytest.approx(whole[0], abs=1e-12)
    for parameter, gradient in whole[1].items():
        torch.testing.assert_close(found[parameter], gradient, atol=1e-12, rtol=0)


def test_a_group_holds_the_prompt_and_each_completion_once() -> None:
    groups = grouped(pairs(), range(7), 10_000)
    assert [len(group.completions) for group in groups] == [4, 2, 3]
    assert groups[0].members == ((0, (0, 1)), (1, (2, 1)), (2, (0, 3)), (3, (2, 3)))
    assert groups[0].num_tokens == 11 + 6 + 11 + 0 + 4


def test_a_group_above_the_budget_is_split_between_its_pairs() -> None:
    groups = grouped(pairs(), range(4), 11 + 6 + 11)
    assert [[number for number, _ in group.members] for group in groups] == [[0, 1], [2, 3]]


def test_what_has_no_examples_is_one_token_for_nothing() -> None:
    batch = micro_batch([], True, CPU)
    assert batch.numbers == () and batch.num_tokens == 1
    made = CompletionLogps(model(PACKABLE["llama"]), ModelCapabilities(True, True))
    assert made(batch).shape == (1,)


@pytest.mark.parametrize("name", PACKABLE)
def test_models_that_can_be_packed_are_known(name: str) -> None:
    assert probe(model(PACKABLE[name], torch.float32)) == ModelCapabilities(
        packed=True, separate_head=True
    )


def test_a_head_whose_logits_are_bent_is_not_called_by_itself() -> None:
    config = Gemma2Config(**SIZES, final_logit_softcapping=2.0, attn_logit_softcapping=None)
    found = probe(model(config, torch.float32))
    assert not found.separate_head
    made, examples = model(config), pairs()
    module = CompletionLogps(made, found)
    batch = micro_batch(grouped(examples, range(7), 10_000), found.packed, CPU)
    expected = torch.stack([tiny.completion_logps(made, e.sequences) for e in examples])
    order = list(batch.numbers)
    torch.testing.assert_close(
        batch.per_sequence(module(batch)), expected[order], atol=1e-5, rtol=0
    )


def test_attention_that_bends_its_scores_is_not_packed() -> None:
    config = Gemma2Config(**SIZES, final_logit_softcapping=None, attn_logit_softcapping=5.0)
    assert not probe(model(config, torch.float32)).packed


def test_an_architecture_that_ignores_positions_is_not_packed() -> None:
    torch.manual_seed(0)
    made = Models.from_config(BloomConfig(vocab_size=101, hidden_size=32, n_layer=2, n_head=4))
    assert not probe(made).packed
