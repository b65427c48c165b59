"""Packed rows on a GPU use FlashAttention, and give what padded rows and float32 give."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as Models
from transformers import LlamaConfig, MistralConfig, Qwen3Config

from sirt_ray.core.encoding import TokenSequence, TrainingExample
from sirt_ray.training import attention
from sirt_ray.training.batching import grouped, micro_batch
from sirt_ray.training.capabilities import probe
from sirt_ray.training.forward import CompletionLogps, ModelCapabilities

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.1,
}
MODELS = {
    "llama": LlamaConfig(**SIZES),
    "no groups of heads": LlamaConfig(**SIZES | {"num_key_value_heads": 4}),
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "sliding window": MistralConfig(**SIZES, sliding_window=19),
}


def examples() -> list[TrainingExample]:
    """Pairs of four questions, up to four of a question, in lengths that are no round numbers."""
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(101, (count,), generator=draw).tolist())

    made: list[TrainingExample] = []
    for question, (length, completions) in enumerate(
        [(33, (70, 21, 1, 45)), (5, (90, 4)), (130, (2, 14, 14)), (1, (17, 64))]
    ):
        prompt, answers = ids(length), [ids(count) for count in completions]
        for rejected in range(1, len(answers)):
            both = (TokenSequence(prompt, answers[0]), TokenSequence(prompt, answers[rejected]))
            made.append(TrainingExample(str(question), both))
    return made


def gradients(made: Any, packed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the completions' log-probabilities, and the gradient of their mean, in float32."""
    made.zero_grad()
    pairs = examples()
    groups = grouped(pairs, range(len(pairs)), max_tokens=10**6)
    batch = micro_batch(groups, packed, made.device)
    logps = CompletionLogps(made, ModelCapabilities(packed, separate_head=True))(batch)
    logps.mean().backward()
    flat = [p.grad.float().flatten() for p in made.parameters() if p.grad is not None]
    return logps.detach().float(), torch.cat(flat)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", MODELS)
def test_the_kernel_gives_what_float32_gives(
    name: str, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention.register()
    torch.manual_seed(0)
    made = Models.from_config(
        MODELS[name], dtype=torch.bfloat16, attn_implementation=attention.PACKED
    ).to(cuda)
    calls: list[int] = []
    by_kernel = attention._by_kernel
    monkeypatch.setattr(attention, "_by_kernel", lambda *args: calls.append(1) or by_kernel(*args))
    assert probe(made) == ModelCapabilities(packed=True, separate_head=True)
    assert len(calls) == SIZES["num_hidden_layers"]
    packed, padded = gradients(made, True), gradients(made, False)
    exact = gradients(made.float(), False)
    for kind, one, two, true in zip(("values", "gradients"), packed, padded, exact, strict=True):
        errors = distance(one, true), distance(two, true)
        print(f"{name}: {kind} of packed rows are {errors[0]:.4f} off, of padded {errors[1]:.4f}")
        assert errors[0] < 1.5 * errors[1] + 1e-3
        assert errors[0] < 0.05


def test_in_float32_segments_are_taken_one_by_one(cuda: torch.device) -> None:
    attention.register()
    made = Models.from_config(
        MODELS["llama"], dtype=torch.float32, attn_implementation=attention.PACKED
    ).to(cuda)
    assert probe(made).packed
    for one, two in zip(gradients(made, True), gradients(made, False), strict=True):
        assert distance(one, two) < 1e-3
