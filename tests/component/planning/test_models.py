"""Sizes of models: published ones, those of a folder, and unknown ones."""

import json
import shutil
from pathlib import Path

import pytest

from sirt_ray.planning import models
from sirt_ray.quickstart import assets
from tests.helpers import tiny

PARAMETERS = {
    # By the weights' index on the hub; the model cards round them (7B, 13B, 70B, 46.7B, 30.5B ...).
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-chat-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-chat-hf": 68_976_648_192,
    "mistralai/Mistral-7B-Instruct-v0.1": 7_241_732_096,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "Qwen/Qwen3-30B-A3B-Instruct-2507": 30_532_122_624,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_counted_from_the_shape_are_those_of_the_weights(name: str) -> None:
    shape = models.shape_of(name)
    assert shape is not None and shape.parameters == PARAMETERS[name]


def test_active_parameters_are_those_of_the_experts_that_a_token_sees() -> None:
    mixtral = models.shape_of("mistralai/Mixtral-8x7B-Instruct-v0.1")
    qwen = models.shape_of("Qwen/Qwen3-30B-A3B-Instruct-2507")
    assert mixtral is not None and qwen is not None
    # "uses 12.9B parameters per token" (Jiang et al. 2024); "3.3B activated" (the model card).
    assert round((mixtral.active + mixtral.outside) / 1e9, 1) == 12.9
    assert round((qwen.active + qwen.outside) / 1e9, 1) == 3.3


def test_a_tokens_kv_cache_by_hand() -> None:
    llama = models.shape_of("meta-llama/Llama-2-70b-chat-hf")
    assert llama is not None
    # 2 x 80 layers x 8 heads x 128 x 2 bytes; on 4 GPUs a quarter; on 16 each head is there twice.
    assert llama.kv_bytes() == 327_680
    assert llama.kv_bytes(4) == 81_920
    assert llama.kv_bytes(16) == 2 * 80 * 1 * 128 * 2


def test_lora_has_rank_times_in_and_out_of_each_matrix() -> None:
    llama = models.shape_of("meta-llama/Llama-2-7b-chat-hf")
    assert llama is not None
    # PEFT prints 19,988,480 for rank 8 on all linear layers.
    assert llama.lora(8) == 32 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008)) == 19_988_480


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_is_counted_as_torch_counts_it(tmp_path: Path, tied: bool) -> None:
    folder = tiny.save_student(tmp_path / "model", tied=tied)
    found = models.shape_of(str(folder))
    assert found is not None
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert found.parameters == model.num_parameters()
    (folder / "model.safetensors").unlink()
    by_config = models.shape_of(str(folder))
    assert by_config is not None and by_config.counted is None
    assert by_config.parameters == model.num_parameters()


def test_a_model_in_the_hubs_cache_is_read_from_there(empty_cache: Path) -> None:
    quickstart = Path(assets.resolve("quickstart:student"))
    repository = empty_cache / "models--someone--small"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    shutil.copy(quickstart / "config.json", snapshot)
    found = models.shape_of("someone/small")
    assert found is not None and found.parameters == 413_568 and "config.json" in found.source


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "mamba"}, {"model_type": "llama", "hidden_size": 8}, [], None]
)
def test_what_is_not_known_is_not_guessed(tmp_path: Path, config: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert models.shape_of(str(tmp_path)) is None
    assert models.shape_of("no-one/knows-this") is None


def test_broken_files_are_not_known(tmp_path: Path) -> None:
    folder = tiny.save_student(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    found = models.shape_of(str(folder))
    assert found is not None and found.counted is None
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"')
    assert models.shape_of(str(folder)) is None


def test_a_quantised_checkpoint_weighs_what_its_files_do(tmp_path: Path) -> None:
    folder = tiny.save_student(tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(settings))
    found = models.shape_of(str(folder))
    assert found is not None
    assert found.quantized_bytes == (folder / "model.safetensors").stat().st_size
