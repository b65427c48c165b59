"""Every architecture is trained as the function that it is: what the probe chooses gives the
log-probabilities of plain `transformers` with eager attention, sequence by sequence."""

import random
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers as hf

from sirt_ray.config.training import RefineConfig
from sirt_ray.core.encoding import TokenSequence, TrainingExample
from sirt_ray.errors import ModelError
from sirt_ray.training import attention
from sirt_ray.training.batching import grouped, micro_batch
from sirt_ray.training.capabilities import probe
from sirt_ray.training.forward import CompletionLogps
from sirt_ray.training.model import attention_of, configure, load_model
from sirt_ray.training.tasks import Source

CPU = torch.device("cpu")
NEAR = 1e-4
Rows = Literal["packed", "padded", "eager"]
"""`padded`: with the attention that `transformers` takes by itself."""

_PLAIN: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 8}
_GPT: dict[str, Any] = {
    "vocab_size": 101,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
_SHARED = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
_MIXED = ["sliding_attention", "full_attention"]


def _llama(rope_type: str, **scaling: float) -> hf.LlamaConfig:
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, **scaling}
    return hf.LlamaConfig(**_HEADS, rope_parameters=rope)


ARCHITECTURES: dict[str, tuple[Rows, Any]] = {
    "llama": ("packed", hf.LlamaConfig(**_HEADS)),
    "llama, linear rope": ("packed", _llama("linear", factor=2.0)),
    "llama, dynamic rope": ("packed", _llama("dynamic", factor=2.0)),
    "llama, yarn": ("packed", _llama("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama 3 rope": (
        "packed",
        _llama(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    "qwen2": ("packed", hf.Qwen2Config(**_HEADS)),
    "qwen2, window": (
        "packed",
        hf.Qwen2Config(**_HEADS, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    ),
    "qwen3": ("packed", hf.Qwen3Config(**_HEADS)),
    "qwen2_moe": ("packed", hf.Qwen2MoeConfig(**_HEADS, **_EXPERTS, **_SHARED)),
    "qwen3_moe": (
        "packed",
        hf.Qwen3MoeConfig(**_HEADS, **_EXPERTS, moe_intermediate_size=24),
    ),
    "qwen3_next": (
        "padded",
        hf.Qwen3NextConfig(
            **_HEADS,
            **_EXPERTS,
            **_SHARED,
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            layer_types=["linear_attention", "full_attention"],
        ),
    ),
    "mistral, window": ("packed", hf.MistralConfig(**_HEADS, sliding_window=7)),
    "mixtral": (
        "packed",
        hf.MixtralConfig(**_HEADS, num_local_experts=4, num_experts_per_tok=2),
    ),
    "gemma": ("packed", hf.GemmaConfig(**_HEADS)),
    "gemma2": (
        "eager",
        hf.Gemma2Config(
            **_HEADS,
            sliding_window=7,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0,
            query_pre_attn_scalar=8,
        ),
    ),
    "gemma3": (
        "packed",
        hf.Gemma3TextConfig(
            **_HEADS, sliding_window=7, query_pre_attn_scalar=8, layer_types=_MIXED
        ),
    ),
    "gpt_oss": (
        "eager",
        hf.GptOssConfig(**_HEADS, num_local_experts=4, num_experts_per_tok=2, sliding_window=7),
    ),
    "phi": ("packed", hf.PhiConfig(**_PLAIN)),
    "phi3": ("packed", hf.Phi3Config(**_GROUPED)),
    "phi3, window": ("packed", hf.Phi3Config(**_GROUPED, sliding_window=7)),
    "gpt2": ("packed", hf.GPT2Config(**_GPT)),
    "gpt_neox": ("packed", hf.GPTNeoXConfig(**_PLAIN)),
    "gpt_neo": (
        "padded",
        hf.GPTNeoConfig(
            vocab_size=101,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            max_position_embeddings=64,
            window_size=7,
            attention_types=[[["global", "local"], 1]],
        ),
    ),
    "gptj": ("padded", hf.GPTJConfig(**_GPT, rotary_dim=4)),
    "codegen": ("padded", hf.CodeGenConfig(**_GPT, rotary_dim=4)),
    "opt": (
        "packed",
        hf.OPTConfig(
            vocab_size=101,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
            pad_token_id=0,
        ),
    ),
    "bloom": ("padded", hf.BloomConfig(vocab_size=101, hidden_size=32, n_layer=2, n_head=4)),
    "mpt": ("padded", hf.MptConfig(vocab_size=101, d_model=32, n_layers=2, n_heads=4)),
    "falcon": ("padded", hf.FalconConfig(**_PLAIN)),
    "falcon, alibi": ("padded", hf.FalconConfig(**_PLAIN, alibi=True)),
    "olmo": ("packed", hf.OlmoConfig(**_PLAIN)),
    "olmo2": ("packed", hf.Olmo2Config(**_GROUPED)),
    "olmoe": ("packed", hf.OlmoeConfig(**_PLAIN, **_EXPERTS)),
    "granite": ("packed", hf.GraniteConfig(**_GROUPED, logits_scaling=4.0)),
    "cohere": ("packed", hf.CohereConfig(**_GROUPED)),
    "cohere2": (
        "packed",
        hf.Cohere2Config(**_GROUPED, sliding_window=7, layer_types=_MIXED),
    ),
    "stablelm": ("padded", hf.StableLmConfig(**_GROUPED)),
    "starcoder2": ("packed", hf.Starcoder2Config(**_GROUPED, sliding_window=7)),
    "smollm3": ("packed", hf.SmolLM3Config(**_GROUPED, no_rope_layers=[1, 0])),
    "glm": ("packed", hf.GlmConfig(**_HEADS)),
    "glm4": ("packed", hf.Glm4Config(**_HEADS)),
    "persimmon": ("packed", hf.PersimmonConfig(**_PLAIN)),
    "nemotron": ("padded", hf.NemotronConfig(**_GROUPED)),
    "exaone4": (
        "packed",
        hf.Exaone4Config(**_HEADS, sliding_window=7, layer_types=_MIXED),
    ),
    "deepseek_v3": (
        "packed",
        hf.DeepseekV3Config(
            **_PLAIN,
            num_key_value_heads=4,
            moe_intermediate_size=24,
            n_routed_experts=4,
            n_group=2,
            topk_group=1,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=8,
        ),
    ),
    "llama4": (
        "padded",
        hf.Llama4TextConfig(
            **_HEADS,
            num_local_experts=2,
            num_experts_per_tok=1,
            interleave_moe_layer_step=1,
            intermediate_size_mlp=48,
            attention_chunk_size=7,
            layer_types=["chunked_attention", "full_attention"],
            no_rope_layers=[1, 0],
        ),
    ),
    "diffllama": ("padded", hf.DiffLlamaConfig(**_HEADS)),
    "mamba": (
        "padded",
        hf.MambaConfig(vocab_size=101, hidden_size=32, num_hidden_layers=2, state_size=8),
    ),
    "lfm2": ("padded", hf.Lfm2Config(**_GROUPED, layer_types=["conv", "full_attention"])),
}


def made(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A model with weights so large that each token depends on all before it."""
    attention.register()
    torch.manual_seed(0)
    configure(config)
    model = hf.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention_of(config)
    ).eval()
    for name, weight in model.named_parameters():
        if weight.ndim > 1 or "sinks" in name:
            torch.nn.init.normal_(weight, std=1.0 if "sinks" in name else 0.15)
    return model.to(dtype)


def examples() -> list[TrainingExample]:
    """Two questions; completions shorter and longer than the windows."""
    draw = random.Random(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(3, 101), k=count))

    return [
        TrainingExample(str(n), tuple(TokenSequence(prompt, ids(count)) for count in lengths))
        for n, (prompt, lengths) in enumerate(((ids(13), (6, 21)), (ids(2), (1, 11))))
    ]


def by_trainer(model: Any, capabilities: Any) -> torch.Tensor:
    groups = grouped(examples(), range(2), 10_000)
    batch = micro_batch(groups, capabilities.packed, CPU)
    with torch.no_grad():
        return CompletionLogps(model, capabilities).token_logps(batch)


def by_transformers(model: Any) -> torch.Tensor:
    model.set_attn_implementation("eager")
    found: list[torch.Tensor] = []
    for example in examples():
        for sequence in example.sequences:
            ids = torch.tensor([[*sequence.prompt_ids, *sequence.completion_ids]])
            with torch.no_grad():
                logps = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            of_targets = logps.gather(-1, ids[0, 1:, None])[:, 0]
            found.append(of_targets[len(sequence.prompt_ids) - 1 :])
    return torch.cat(found)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probabilities_are_those_of_plain_transformers(name: str) -> None:
    rows, config = ARCHITECTURES[name]
    model = made(config)
    capabilities = probe(model)
    assert capabilities.packed == (rows == "packed")
    assert (model.config._attn_implementation == "eager") or rows != "eager"
    found = by_trainer(model, capabilities)
    torch.testing.assert_close(found, by_transformers(model), atol=NEAR, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral, window", "gpt_oss", "gemma2", "llama4"])
def test_a_loaded_model_is_the_same_function_before_it_is_probed(name: str, tmp_path: Path) -> None:
    made(ARCHITECTURES[name][1]).save_pretrained(tmp_path)
    own = hf.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ours = load_model(Source(str(tmp_path)), RefineConfig()).eval()
    ids = torch.randint(3, 101, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, own(ids).logits, atol=NEAR, rtol=0)


@pytest.mark.parametrize("load_as", ["sdpa", attention.PACKED])
def test_an_attention_that_leaves_something_out_is_found_however_it_was_loaded(
    load_as: str,
) -> None:
    model = made(ARCHITECTURES["gemma2"][1])
    model.set_attn_implementation(load_as)
    assert not probe(model).packed and model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["gpt_oss", "gemma2", "llama4", "mamba"])
def test_the_choice_is_recorded_with_its_distances(name: str) -> None:
    rows, config = ARCHITECTURES[name]
    chosen = probe(made(config)).attention
    assert chosen is not None
    assert (chosen.used == "eager") == (rows == "eager" or name == "mamba")
    assert chosen.difference <= chosen.tolerance == NEAR
    apart = {"gpt_oss": 0.1, "gemma2": 1e-3, "llama4": 0.1, "mamba": None}[name]
    assert (chosen.packed_difference is None) == (apart is None)
    assert apart is None or (chosen.packed_difference or 0) > apart


@pytest.mark.parametrize("name", ["llama", "mistral, window", "mixtral"])
def test_in_bfloat16_noise_is_no_other_function(name: str) -> None:
    capabilities = probe(made(ARCHITECTURES[name][1], torch.bfloat16))
    assert capabilities.packed
    assert capabilities.attention is not None and capabilities.attention.tolerance > NEAR


@pytest.mark.parametrize("name", ["gpt_oss", "gemma2", "llama4", "lfm2"])
def test_in_bfloat16_another_function_is_seen(name: str) -> None:
    assert not probe(made(ARCHITECTURES[name][1], torch.bfloat16)).packed


def test_a_window_that_a_layer_does_not_pass_on_counts_also_where_it_is_long() -> None:
    model = made(hf.Gemma3TextConfig(**_HEADS, sliding_window=4096, layer_types=_MIXED))
    assert probe(model).packed
    model.model.layers[0].self_attn.sliding_window = None  # Only its mask has the window then.
    assert not probe(model).packed


def test_a_model_that_sees_what_comes_is_refused() -> None:
    model = made(hf.BertConfig(**_PLAIN))
    with pytest.raises(ModelError, match=r"cannot be trained.*Choose a causal language model"):
        probe(model)


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = made(ARCHITECTURES["llama"][1])
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ModelError, match="its weights hold inf or NaN"):
        probe(model)
