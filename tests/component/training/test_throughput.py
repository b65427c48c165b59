"""What a batch puts through the model, by hand and against torch's own count."""

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from sirt_ray.config.training import LoraConfig
from sirt_ray.core.encoding import TokenSequence, TrainingExample
from sirt_ray.training.batching import grouped, micro_batch, micro_batches
from sirt_ray.training.forward import CompletionLogps, ModelCapabilities
from sirt_ray.training.metrics import (
    ForwardCounts,
    count_forward,
    model_size,
    peak_flops,
    peak_memory_gib,
)
from sirt_ray.training.model import add_lora
from sirt_ray.training.tasks import Source

CPU = torch.device("cpu")
ATTENTION = "scaled_dot_product"


def pair(prompt: int, chosen: int, rejected: int) -> TrainingExample:
    """Completions of so many tokens after a prompt of so many."""
    prompt_ids = tuple(range(3, 3 + prompt))
    sequences = (
        TokenSequence(prompt_ids, (n,) * count) for n, count in ((1, chosen), (2, rejected))
    )
    return TrainingExample("q", tuple(sequences))


def put_through(
    examples: list[TrainingExample], packed: bool, world_size: int = 1
) -> ForwardCounts:
    groups = grouped(examples, range(len(examples)), 1000)
    return count_forward(micro_batches(groups, packed, 1000, world_size), packed)


# A prompt of 5 with completions of 4 (chosen twice), 3 and 2 tokens, whose last is not put in.
PAIRS = [pair(5, 4, 3), pair(5, 4, 2)]
ALONE = (5 + 3) + (5 + 2) + (5 + 3) + (5 + 1)
TRIANGLE = [0, 1, 3, 6, 10, 15, 21, 28, 36]
"""Of a causal sequence by its length: how many tokens see how many."""


def test_a_packed_batch_holds_what_is_shared_once() -> None:
    done = put_through(PAIRS, packed=True)
    tokens = 5 + 3 + 2 + 1
    attended = TRIANGLE[5] + (15 + TRIANGLE[3]) + (10 + TRIANGLE[2]) + (5 + TRIANGLE[1])
    assert done == ForwardCounts(tokens, tokens, ALONE, predicted=4 + 3 + 2, attended=attended)
    assert done.padding_share == 0
    assert done.shared_share == pytest.approx(1 - 11 / 29)


def test_a_padded_batch_repeats_the_prompt_and_fills_up() -> None:
    done = put_through(PAIRS, packed=False)
    attended = TRIANGLE[8] + TRIANGLE[7] + TRIANGLE[6]
    assert done == ForwardCounts(3 * 8, 8 + 7 + 6, ALONE, predicted=9, attended=attended)
    assert done.padding_share == pytest.approx(3 / 24)
    assert done.shared_share == pytest.approx(1 - 21 / 29)


def test_an_idle_worker_pads() -> None:
    done = put_through(PAIRS, packed=True, world_size=3)
    assert (done.positions, done.tokens) == (11 + 2, 11)


def llama(tied: bool) -> Any:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


# Queries and outputs of 32 x 32, keys and values of 32 x 16, three of 32 x 64; norms of 32.
MATRICES = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
NORMS = 5 * 32


@pytest.mark.parametrize("tied", [False, True])
def test_flops_are_those_that_torch_counts(tied: bool) -> None:
    model = llama(tied)
    size = model_size(model)
    assert size is not None and size.body == size.trained_body == MATRICES + NORMS
    assert (size.head, size.head_trained, size.attention) == (50 * 32, True, 2 * 4 * 8)

    examples = [pair(40, 30, 31)]
    batch = micro_batch(grouped(examples, [0], 1000), False, CPU)
    with FlopCounterMode(display=False) as counter:
        CompletionLogps(model, ModelCapabilities(packed=False, separate_head=True))(
            batch
        ).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(n for operation, n in counted.items() if ATTENTION not in str(operation))
    # Every place is computed, of padding as well: the shorter row has one.
    tokens = 2 * (40 + 30)
    done = ForwardCounts(tokens, tokens, tokens, predicted=61, attended=0)
    assert products == size.flops(done) - 6 * NORMS * tokens


def test_attention_is_two_products_forward_and_four_backward() -> None:
    size = model_size(llama(tied=True))
    assert size is not None
    # Each of 2 layers and 4 heads: a multiplication and an addition for each of 8 numbers.
    assert size.flops(ForwardCounts(0, 0, 0, 0, attended=100)) == 2 * 4 * 6 * (2 * 8) * 100


def test_frozen_parameters_take_no_gradients_of_their_own() -> None:
    model = add_lora(llama(tied=False), LoraConfig(rank=2), Source("here"), seed=0)
    size = model_size(model)
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert size is not None and size.trained_body == adapters
    assert size.body == MATRICES + NORMS + adapters
    frozen, trained = 4 * (MATRICES + NORMS), 6 * adapters
    assert size.flops(ForwardCounts(10, 10, 10, 5, 0)) == 10 * (frozen + trained) + 5 * 4 * 50 * 32


def test_adapters_are_of_the_models_type() -> None:
    model = add_lora(llama(tied=False).bfloat16(), LoraConfig(rank=2), Source("here"), seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_matrix_in_four_bits_counts_as_what_it_stands_for() -> None:
    """As bitsandbytes has it: two numbers in a byte, and the shape in an attribute."""
    plain, packed = llama(tied=False), llama(tied=False)
    for layer in packed.model.layers:
        weight = layer.mlp.up_proj.weight
        bytes_ = torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8)
        layer.mlp.up_proj.weight = torch.nn.Parameter(bytes_, requires_grad=False)
        layer.mlp.up_proj.weight.quant_state = SimpleNamespace(shape=weight.shape)
    whole, found = model_size(plain), model_size(packed)
    assert whole is not None and found is not None and found.body == whole.body


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA L40S", 362),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 2080", None),
    ],
)
def test_peaks_are_of_known_devices(name: str, tera: int | None) -> None:
    assert peak_flops(name) == (None if tera is None else tera * 1e12)


def test_peak_memory_never_falls_and_sees_what_is_held() -> None:
    before = peak_memory_gib(CPU)
    now = psutil.Process().memory_info().rss / 2**30
    held = torch.ones(int((before - now + 0.1) * 2**28))
    assert peak_memory_gib(CPU) >= before + 0.05
    del held
    assert peak_memory_gib(CPU) >= before + 0.05
