"""Every layout trains the same student: ZeRO stages and offload on two workers, and plain torch in
one process, without Ray."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sirt_ray.artifacts import parquet
from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import LoraConfig, RefineConfig, TuneConfig
from sirt_ray.core.encoding import encode_demonstration
from sirt_ray.training.run import REFERENCE_FILE, run
from sirt_ray.training.tasks import ReferenceTask, RefineTask, Source, TuneTask
from sirt_ray.training.workdir import read_lines
from tests.helpers import layouts, tiny

TUNE = TuneConfig(
    batch_size=6, epochs=10, max_steps=20, evaluate_every_steps=20, validation_fraction=0.1
)

KINDS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 2e-3, "lora": None},
    "lora": {"learning_rate": 1e-2, "lora": LoraConfig(rank=4)},
}
SHARDED = ((0, "none"), (1, "none"), (2, "none"), (3, "none"))
OFFLOADED = ((2, "optimizer"), (3, "parameters"))


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """20 optimizer steps in every layout of two workers; the first of each kind in this process,
    with plain torch."""
    folder = tmp_path_factory.mktemp("layouts")
    source = Source(str(tiny.save_student(folder / "base", tied=True)))
    demonstrations = tiny.write_demonstrations(folder / "demonstrations", range(24))
    pairs = tiny.write_pairs(folder / "pairs", range(6))

    def task(kind: str, zero_stage: int, offload: str, name: str) -> TuneTask:
        resources = TrainerResources.model_validate(
            {
                "num_workers": 2,
                "zero_stage": zero_stage,
                "offload": offload,
                "max_tokens_per_micro_batch": 300,
                "checkpoint_every_steps": 15,
            }
        )
        config = TUNE.model_copy(update=KINDS[kind])
        out = folder / f"{kind}_{zero_stage}_{offload}{name}"
        return TuneTask(out, source, demonstrations, config, resources, seed=0)

    cut = [task(kind, *how, "") for kind in KINDS for how in SHARDED]
    cut += [task("full", *how, "") for how in OFFLOADED]
    offloading = cut[-1].resources
    passes = [
        ReferenceTask(folder / f"reference_{name}", source, pairs, RefineConfig(), resources)
        for name, resources in (("cut", offloading), ("alone", TrainerResources()))
    ]
    alone = {kind: task(kind, 0, "none", "_alone") for kind in KINDS}
    for lone in (*alone.values(), passes[1]):
        run(lone, torch.device("cpu"))
    resumed = [task("full", *how, "_resumed") for how in SHARDED]
    resumed.append(task("lora", 3, "none", "_resumed"))
    for one in resumed:
        last_checkpoint(alone["lora" if one.config.lora else "full"].out, one.out)
    layouts.train([*cut, passes[0], *resumed], folder / "meeting")
    made = {"reference": [of.out for of in passes]}
    for kind in KINDS:
        made[kind] = [alone[kind].out, *sorted(t.out for t in cut if t.out.name.startswith(kind))]
        made[f"{kind}_resumed"] = [one.out for one in resumed if one.out.name.startswith(kind)]
    for one in (*cut[:4], cut[7], *cut[8:]):
        kind = "lora" if one.config.lora else "full"
        lone = task(kind, 0, "none", f"_alone_from_{one.out.name}")
        last_checkpoint(one.out, lone.out)
        run(lone, torch.device("cpu"))
        made[f"{kind}_resumed"].append(lone.out)
    return made


def last_checkpoint(trained: Path, out: Path) -> None:
    """Make a half-done training of the newest checkpoint of a finished one."""
    for name in ("checkpoints/step_000015", "weights"):
        if (trained / ".work" / name).exists():
            shutil.copytree(trained / ".work" / name, out / ".work" / name)
    shutil.copy(trained / "metrics.jsonl", out / ".work")


@pytest.mark.timeout(480)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_zero_stages_and_offload_train_the_same_student(
    students: dict[str, list[Path]], kind: str
) -> None:
    """Weights moved by 0.01 and more on average; what is left between layouts is some roundings of
    float32 at their size, below 1e-6 where it was measured."""
    alone, *others = students[kind]
    assert len(others) == (6 if kind == "full" else 4)
    for other in others:
        assert len(read_lines(other / "metrics.jsonl")) == 20
        for a, b in zip(
            read_lines(alone / "metrics.jsonl"), read_lines(other / "metrics.jsonl"), strict=True
        ):
            assert b["loss"] == pytest.approx(a["loss"], rel=2e-6)
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
        weights = load_file(other / "model.safetensors")
        for name, tensor in load_file(alone / "model.safetensors").items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-6)


@pytest.mark.timeout(480)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_checkpoint_is_resumed_in_any_layout(students: dict[str, list[Path]], kind: str) -> None:
    """Those of one process by two workers, and those of two workers by one process."""
    resumed = students[f"{kind}_resumed"]
    assert len(resumed) == (10 if kind == "full" else 2)
    undisturbed = load_file(students[kind][0] / "model.safetensors")
    for student in resumed:
        counts = json.loads((student / "training.json").read_text())
        assert counts["repeated"]["steps"] == 5 and "unreadable" not in counts["repeated"]
        weights = load_file(student / "model.safetensors")
        for name, tensor in undisturbed.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-6)


@pytest.mark.timeout(480)
def test_an_adapter_from_zero_3_is_what_was_merged(students: dict[str, list[Path]]) -> None:
    out = next(student for student in students["lora"] if student.name.startswith("lora_3"))
    sequences = [
        encode_demonstration(tiny.demonstration(number), "cot", tiny.byte_tokenizer())
        for number in range(4)
    ]

    def logps(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return tiny.completion_logps(model.eval(), sequences)

    base = AutoModelForCausalLM.from_pretrained(out.parent / "base")
    before = logps(base)
    merged = logps(AutoModelForCausalLM.from_pretrained(out))
    adapted = logps(peft.PeftModel.from_pretrained(base, out / "adapter"))
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-4)
    assert (merged - before).abs().max() > 1.0


@pytest.mark.timeout(480)
def test_offloaded_parameters_give_the_same_reference(students: dict[str, list[Path]]) -> None:
    cut, alone = (parquet.read(out / REFERENCE_FILE) for out in students["reference"])
    assert len(cut) == 6
    for one, two in zip(cut, alone, strict=True):
        assert one == pytest.approx(two, abs=1e-4)


@pytest.mark.timeout(480)
def test_kto_on_two_workers_is_kto_in_one_process(tmp_path: Path) -> None:
    """The divergence is the whole batch's, wherever its parts are computed."""
    config = RefineConfig(batch_size=6, epochs=1, learning_rate=1e-3, warmup_steps=0, loss="kto")
    source = Source(str(tiny.save_student(tmp_path / "base", tied=True)))
    reference = Source(str(tiny.save_student(tmp_path / "reference", seed=3, tied=True)))
    pairs, lone = tiny.write_pairs(tmp_path / "pairs", range(14)), TrainerResources()
    scored = ReferenceTask(tmp_path / "logps", reference, pairs, config, lone)
    run(scored, torch.device("cpu"))

    def task(name: str, resources: TrainerResources) -> RefineTask:
        return RefineTask(
            tmp_path / name, source, pairs, scored.out, config, resources, 0, reference
        )

    alone, cut = task("alone", lone), task("cut", TrainerResources(num_workers=2, zero_stage=2))
    run(alone, torch.device("cpu"))
    layouts.train([cut], tmp_path / "meeting")
    for one, two in zip(
        read_lines(alone.out / "metrics.jsonl"), read_lines(cut.out / "metrics.jsonl"), strict=True
    ):
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-5)
        assert two["kl"] == pytest.approx(one["kl"], rel=1e-4)
        assert one["kl"] > 0
