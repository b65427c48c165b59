"""The packaged models load, and the command that makes them runs."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sirt_ray.core import prompts
from sirt_ray.errors import ModelError
from sirt_ray.quickstart import assets, pretrain, tasks, tokenizer

LARGEST_ASSETS_BYTES = 8 * 2**20


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_packaged_model_loads(role: str) -> None:
    folder = assets.resolve(f"quickstart:{role}")
    loaded = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(loaded)
    assert model.config.head_dim % 32 == 0
    assert generation.eos_token_id == loaded.eos_token_id
    assert generation.bos_token_id == loaded.bos_token_id
    assert generation.pad_token_id == loaded.pad_token_id


def test_packaged_tokenizers_are_the_one_that_the_code_builds() -> None:
    built = tokenizer.build().get_vocab()
    for role in ("student", "teacher"):
        loaded = AutoTokenizer.from_pretrained(assets.resolve(f"quickstart:{role}"))
        assert loaded.get_vocab() == built


def test_packaged_teacher_reasons_to_the_right_answer() -> None:
    folder = assets.resolve("quickstart:teacher")
    loaded = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    num_right = 0
    for index in range(10):
        item = tasks.problem("word_problems", "validation", index, 0)
        prompt = loaded(prompts.render(item.question(), "cot"), return_tensors="pt")
        written = model.generate(**prompt, max_new_tokens=96, do_sample=False)
        text = loaded.decode(written[0], skip_special_tokens=True)
        num_right += text.endswith(f" The answer is {item.answer}.")
    assert num_right >= 6


def test_packaged_assets_are_small() -> None:
    folder = Path(assets.__file__).parent / "assets"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST_ASSETS_BYTES


def test_other_names_are_unchanged() -> None:
    assert assets.resolve("s3://bucket/model") == "s3://bucket/model"
    assert not assets.is_quickstart("meta-llama/Llama-2-7b-hf")


def test_unknown_quickstart_model_is_refused() -> None:
    with pytest.raises(ModelError, match="quickstart:pupil"):
        assets.resolve("quickstart:pupil")


def test_the_command_writes_loadable_models(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        pretrain.main(["--out", str(tmp_path), "--steps-scale", "0.0001"])
    finally:
        torch.set_num_threads(threads)
    for role in ("student", "teacher"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / role)
        loaded = AutoTokenizer.from_pretrained(tmp_path / role)
        assert model.config.vocab_size == len(loaded)


def test_loss_covers_the_target_only() -> None:
    loaded = AutoTokenizer.from_pretrained(assets.resolve("quickstart:student"))
    encoded = pretrain.encode(loaded, [(" Tom has", " 7.")])
    ids, labels = pretrain.collate(encoded)
    kept = ids[labels != pretrain.IGNORED]
    assert loaded.decode(kept) == " 7.</s>"
