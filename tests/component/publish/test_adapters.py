"""Students that were trained with LoRA: as adapters, and merged."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import load
from sirt_ray.errors import ModelError
from sirt_ray.publish.card import UNLICENSED
from sirt_ray.publish.folder import export_student
from sirt_ray.publish.students import find_student
from tests.helpers.trained_runs import TrainedStages, export, write

PROMPT = torch.tensor([[1, *range(40, 60)]])


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lora"), TrainedStages(lora=(0, 1, 2)), rounds=2)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=PROMPT).logits


def test_adapters_on_adapters_are_exported_as_one_that_equals_the_merged_student(
    lora_run: Path, tmp_path: Path
) -> None:
    assert export(lora_run, tmp_path / "adapter") == 0
    assert export(lora_run, tmp_path / "merged", "--merge") == 0
    assert not (tmp_path / "adapter/config.json").exists()
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["r"] == 2 + 3 + 4
    assert Path(config["base_model_name_or_path"]) == lora_run.parent / "base"
    expected = logits(AutoModelForCausalLM.from_pretrained(lora_run / "round_02/student"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(merged), expected)
    assert torch.allclose(logits(adapted), expected, atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(lora_run.parent / "base")
    assert not torch.allclose(logits(base), expected, atol=1e-1)


def test_a_single_adapter_leaves_as_it_is(lora_run: Path, tmp_path: Path) -> None:
    assert export(lora_run, tmp_path / "out", "--stage", "round_00") == 0
    name = "adapter_model.safetensors"
    ours, theirs = (
        peft.utils.load_peft_weights(str(folder), device="cpu")
        for folder in (lora_run / "round_00/student/adapter", tmp_path / "out")
    )
    assert (tmp_path / "out" / name).is_file() and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "peft" and "AutoPeftModelForCausalLM" in card.content


def test_an_adapter_on_weights_of_the_run_has_to_be_merged(tmp_path: Path) -> None:
    run_dir = write(tmp_path, TrainedStages(lora=(1,)))
    with pytest.raises(ModelError, match=r"weights of round_00.*--merge"):
        export_student(find_student(run_dir), tmp_path / "out", False, False, UNLICENSED)
    assert export(run_dir, tmp_path / "out", "--merge") == 0


def test_the_job_leaves_without_what_only_this_machine_knows(
    lora_run: Path, tmp_path: Path
) -> None:
    export(lora_run, tmp_path / "out", "--merge")
    told = (tmp_path / "out/job.yaml").read_text() + (tmp_path / "out/README.md").read_text()
    assert str(lora_run.parent) not in told
    theirs = load.load(tmp_path / "out/job.yaml", (), REGISTRY)
    ours = load.load(lora_run / "config.yaml", (), REGISTRY)
    assert theirs.student.model == "./base"
    for section in ("tune", "refine", "evaluation", "demonstrations", "seed", "data"):
        assert getattr(theirs, section) == getattr(ours, section)
