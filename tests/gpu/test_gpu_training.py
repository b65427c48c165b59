"""Training in this process on a GPU in bfloat16: whole models, LoRA and QLoRA."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sirt_ray.cli.main import main
from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import LoraConfig, RefineConfig, TuneConfig
from sirt_ray.training import run as training
from sirt_ray.training.capabilities import probe
from sirt_ray.training.metrics import model_size
from sirt_ray.training.model import add_lora, load_model
from sirt_ray.training.run import run
from sirt_ray.training.tasks import Source, TuneTask
from sirt_ray.training.workdir import read_lines
from tests.helpers.gpu_trainings import KINDS
from tests.helpers.killed_training import KilledAt, KilledError

NEAR = 0.02
"""Tolerance of losses of about 5 nats in bfloat16, computed in another order."""


@pytest.fixture(autouse=True)
def bitsandbytes(request: pytest.FixtureRequest) -> None:
    if "qlora" in request.node.name:
        pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")


def train(assets: Path, command: str, out: Path, **settings: object) -> list[dict[str, Any]]:
    """Train by the command, with packed batches, and return the lines of its metrics."""
    section = {"sft": "tune", "dpo": "refine"}[command]
    values = {"dtype": "bfloat16", "batch_size": 8, "epochs": 4, "warmup_steps": 0} | settings
    data = assets / {"sft": "demonstrations", "dpo": "pairs"}[command]
    overrides = [f"{section}.{key}={json.dumps(value)}" for key, value in values.items()]
    assert (
        main(
            [
                *(
                    "train",
                    command,
                    "--model",
                    str(assets / "base"),
                    "--data",
                    str(data),
                    "--out",
                    str(out),
                ),
                *(word for override in overrides for word in ("--set", override)),
            ]
        )
        == 0
    )
    counts = json.loads((out / "student" / "record.json").read_text())["counts"]
    assert counts["batches"] == "packed"
    return read_lines(out / "student" / "metrics.jsonl")


@pytest.mark.parametrize("kind", KINDS)
def test_tuning_lowers_the_loss(tmp_path: Path, assets: Path, kind: str) -> None:
    lines = train(assets, "sft", tmp_path, **KINDS[kind])
    print(kind, [round(line["loss"], 4) for line in lines])
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=torch.float32)
    assert all(torch.isfinite(weight).all() for weight in student.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_refinement_starts_at_ln_2_and_learns(tmp_path: Path, assets: Path, kind: str) -> None:
    lines = train(assets, "dpo", tmp_path, **KINDS[kind])
    print(kind, [round(line["preference_loss"], 5) for line in lines])
    assert lines[0]["preference_loss"] == pytest.approx(math.log(2), abs=5e-3)
    assert lines[-1]["preference_loss"] < lines[0]["preference_loss"] - 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_changes_memory_and_no_losses(
    assets: Path, tmp_path: Path, kind: str, cuda: torch.device
) -> None:
    found: list[tuple[list[float], int]] = []
    for checkpointing in (False, True):
        torch.cuda.reset_peak_memory_stats()
        out = tmp_path / str(checkpointing)
        run(task(assets, out, kind, gradient_checkpointing=checkpointing), cuda)
        losses = [line["loss"] for line in read_lines(out / "metrics.jsonl")]
        found.append((losses, torch.cuda.max_memory_allocated()))
    (usual, much), (again, less) = found
    print(f"{kind}: {much / 2**20:.0f} MiB, {less / 2**20:.0f} MiB with checkpointing")
    assert again == pytest.approx(usual, abs=NEAR)
    assert less < much


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_resumes(
    assets: Path, tmp_path: Path, kind: str, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (task(assets, tmp_path / name, kind) for name in ("whole", "killed"))
    run(whole, cuda)
    with monkeypatch.context() as patch:
        patch.setattr(training, "WorkDir", lambda out, _: KilledAt(out, 5))
        with pytest.raises(KilledError):
            run(killed, cuda)
    run(killed, cuda)
    one, two = (read_lines(of.out / "metrics.jsonl") for of in (whole, killed))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=NEAR)


def task(assets: Path, out: Path, kind: str, **resources: Any) -> TuneTask:
    changed = {"max_tokens_per_micro_batch": 1000, "checkpoint_every_steps": 2} | resources
    config = TuneConfig.model_validate(
        {"dtype": "bfloat16", "batch_size": 8, "epochs": 3, **KINDS[kind]}
    )
    trainer = TrainerResources.model_validate(changed)
    return TuneTask(
        out, Source(str(assets / "base")), assets / "demonstrations", config, trainer, 0
    )


def test_a_model_is_probed_on_the_device_that_trains_it(
    assets: Path, tmp_path: Path, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def recorded(model: Any) -> Any:
        devices.append(next(model.parameters()).device.type)
        return probe(model)

    monkeypatch.setattr(training, "probe", recorded)
    run(task(assets, tmp_path, "full"), cuda)
    assert devices == ["cuda"]


def test_a_qlora_base_has_four_bits_and_counts_as_whole(assets: Path, cuda: torch.device) -> None:
    source = Source(str(assets / "base"))
    lora = LoraConfig(rank=8, quantize="nf4")
    plain, packed = (
        add_lora(load_model(source, RefineConfig(dtype="bfloat16", lora=lora), on), lora, source, 0)
        for on in (None, cuda)
    )
    assert model_size(packed) == model_size(plain)
    assert {p.dtype for p in packed.parameters() if p.requires_grad} == {torch.bfloat16}
    linear = packed.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert linear.dtype == torch.uint8 and linear.numel() == 512 * 256 // 2
