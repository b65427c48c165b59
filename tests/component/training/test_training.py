"""Training in one process with the plain engine: the equalities that every engine has to keep."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import LoraConfig, TuneConfig
from sirt_ray.core.encoding import TokenSequence, TrainingExample, encode_demonstration
from sirt_ray.errors import DataError, StageError
from sirt_ray.training.data import held_out_questions
from sirt_ray.training.metrics import MEASURED
from sirt_ray.training.objectives import Tuning
from sirt_ray.training.run import run
from sirt_ray.training.tasks import Source, TuneTask
from sirt_ray.training.workdir import WorkDir, read_lines
from tests.helpers import tiny
from tests.helpers.killed_training import KilledAt, KilledError

CPU = torch.device("cpu")
TUNE = TuneConfig(
    batch_size=8,
    epochs=3,
    learning_rate=3e-3,
    evaluate_every_steps=2,
    validation_fraction=0.1,
)
RESOURCES = TrainerResources(checkpoint_every_steps=2, max_tokens_per_micro_batch=1000)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_student(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_demonstrations(tmp_path_factory.mktemp("demonstrations"), range(24))


@pytest.fixture(scope="module")
def tune(base: Path, demonstrations: Path) -> Callable[..., dict[str, Any]]:
    def tuned(out: Path, resources: TrainerResources = RESOURCES, **changed: Any) -> dict[str, Any]:
        config = TUNE.model_copy(update=changed)
        task = TuneTask(out, Source(str(base)), demonstrations, config, resources, seed=0)
        return run(task, CPU)

    return tuned


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tune: Any) -> Callable[..., Path]:
    """Return the student of an uninterrupted training with these settings, trained once."""
    made: dict[str, Path] = {}

    def student(**changed: Any) -> Path:
        if repr(changed) not in made:
            made[repr(changed)] = tmp_path_factory.mktemp("whole") / "student"
            tune(made[repr(changed)], **changed)
        return made[repr(changed)]

    return student


def weights(student: Path) -> dict[str, torch.Tensor]:
    return load_file(student / "model.safetensors")


def logps(model: Any, sequences: list[TokenSequence]) -> torch.Tensor:
    with torch.no_grad():
        return tiny.completion_logps(model.eval(), sequences)


def sequences() -> list[TokenSequence]:
    tokenizer = tiny.byte_tokenizer()
    return [encode_demonstration(tiny.demonstration(n), "cot", tokenizer) for n in range(6)]


def test_tuning_lowers_the_loss_and_exports_a_student(tmp_path: Path, tune: Any) -> None:
    counts = tune(tmp_path)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert counts["examples"] + counts["held_out"] == 24
    assert counts["steps"] == counts["chosen_step"] == 9
    assert json.loads((tmp_path / "training.json").read_text()) == counts
    assert counts["validation"] == {"loss": lines[-1]["validation_loss"]}
    assert counts["warnings"] == [] and "stopped_early" not in counts
    for line in lines:
        assert line["examples_per_second"] > 0 and line["peak_memory_gib"] > 0.1
        assert line["padding_share"] == 0 and line["shared_share"] == 0
        assert "mfu" not in line, "the peak of a CPU is not known"


def test_exported_student_gives_the_trainers_loss(whole: Any) -> None:
    student = whole()
    counts = json.loads((student / "training.json").read_text())
    loss = tiny.validation_loss(student, range(24), TUNE.validation_fraction, seed=0)
    assert loss == pytest.approx(counts["best_validation_loss"], rel=1e-6)


def test_a_temperature_without_sampling_does_not_stop_the_export(
    tmp_path: Path, demonstrations: Path
) -> None:
    base = tiny.save_student(tmp_path / "base")
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.6}))
    config = TUNE.model_copy(update={"max_steps": 1})
    out = tmp_path / "student"
    run(TuneTask(out, Source(str(base)), demonstrations, config, RESOURCES, seed=0), CPU)
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.6


@pytest.mark.parametrize("max_tokens", [1, 300, 100_000])
def test_micro_batches_do_not_change_the_result(
    tmp_path: Path, tune: Any, whole: Any, max_tokens: int
) -> None:
    tune(tmp_path, RESOURCES.model_copy(update={"max_tokens_per_micro_batch": max_tokens}))
    usual, other = (read_lines(student / "metrics.jsonl") for student in (whole(), tmp_path))
    for one, two in zip(usual, other, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_activation_checkpointing_does_not_change_the_result(
    tmp_path: Path, tune: Any, whole: Any
) -> None:
    tune(tmp_path, RESOURCES.model_copy(update={"gradient_checkpointing": True}))
    usual, other = weights(whole()), weights(tmp_path)
    assert all(torch.equal(usual[name], other[name]) for name in usual)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, dropout=0.1)])
@pytest.mark.parametrize("killed_at", [1, 5])
def test_resumed_is_uninterrupted_bit_for_bit(
    tmp_path: Path,
    tune: Any,
    whole: Any,
    lora: LoraConfig | None,
    killed_at: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sirt_ray.training.run.WorkDir", lambda out, _: KilledAt(out, killed_at))
        with pytest.raises(KilledError):
            tune(tmp_path, lora=lora)
    tune(tmp_path, lora=lora)
    one, two = weights(whole(lora=lora)), weights(tmp_path)
    assert all(torch.equal(one[name], two[name]) for name in one)

    def results(student: Path) -> list[dict[str, float]]:
        lines = read_lines(student / "metrics.jsonl")
        return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]

    assert results(whole(lora=lora)) == results(tmp_path)


def test_worker_that_outlived_its_driver_stops(tmp_path: Path) -> None:
    old = WorkDir(tmp_path, attempt=WorkDir(tmp_path).acquire(RESOURCES))
    old.append({"step": 1})
    new = WorkDir(tmp_path, attempt=WorkDir(tmp_path).acquire(RESOURCES))
    with pytest.raises(StageError, match="taken over"):
        old.append({"step": 2})
    new.append({"step": 2})
    assert [line["step"] for line in read_lines(new.metrics)] == [1, 2]


def test_kill_between_training_and_export_only_exports_again(tmp_path: Path, tune: Any) -> None:
    counts = tune(tmp_path)
    before = weights(tmp_path)
    (tmp_path / "training.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    assert tune(tmp_path) == counts
    assert all(torch.equal(before[name], weights(tmp_path)[name]) for name in before)


def test_best_validation_loss_is_chosen(tmp_path: Path, tune: Any) -> None:
    counts = tune(tmp_path, learning_rate=0.3, schedule="constant", warmup_ratio=0.0)
    evaluated = {
        line["step"]: line["validation_loss"]
        for line in read_lines(tmp_path / "metrics.jsonl")
        if "validation_loss" in line
    }
    assert list(evaluated) == [2, 4, 6, 8, 9]
    assert counts["chosen_step"] == min(evaluated, key=lambda step: evaluated[step])
    assert counts["best_validation_loss"] == min(evaluated.values())


def test_last_is_chosen_on_request(tmp_path: Path, tune: Any) -> None:
    changed = {"learning_rate": 0.3, "schedule": "constant", "warmup_ratio": 0.0}
    assert tune(tmp_path, select_by="last", **changed)["chosen_step"] == 9


DIVERGING = {"learning_rate": 0.3, "schedule": "constant", "warmup_ratio": 0.0, "patience": 2}


@pytest.mark.parametrize("killed_at", [5, 6])
def test_early_stop_is_at_the_same_step_after_a_kill(
    tmp_path: Path, tune: Any, whole: Any, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = whole(**DIVERGING)
    counts = json.loads((student / "training.json").read_text())
    lines = read_lines(student / "metrics.jsonl")
    evaluated = {
        line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line
    }
    *earlier, _, second_worse = evaluated
    assert counts["chosen_step"] == earlier[-1] == min(evaluated, key=lambda step: evaluated[step])
    assert counts["steps"] == lines[-1]["step"] == second_worse < counts["planned_steps"] == 9
    assert counts["stopped_early"].endswith(f"in 2 evaluations after step {earlier[-1]}")

    with monkeypatch.context() as patch:
        patch.setattr("sirt_ray.training.run.WorkDir", lambda out, _: KilledAt(out, killed_at))
        with pytest.raises(KilledError):
            tune(tmp_path, **DIVERGING)
    resumed = tune(tmp_path, **DIVERGING)
    machine = {"seconds", "peak_memory_gib", "repeated"}
    assert resumed["repeated"]["steps"] == killed_at - 4  # The checkpoint before is of step 4.
    assert {k: v for k, v in resumed.items() if k not in machine} == {
        k: v for k, v in counts.items() if k not in machine
    }
    one, two = weights(student), weights(tmp_path)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_merged_student_equals_base_with_adapter(tmp_path: Path, tune: Any, base: Path) -> None:
    tune(tmp_path, lora=LoraConfig(rank=4, alpha=8), learning_rate=1e-2)
    untuned = AutoModelForCausalLM.from_pretrained(base)
    before = logps(untuned, sequences())
    adapted = logps(peft.PeftModel.from_pretrained(untuned, tmp_path / "adapter"), sequences())
    merged = logps(AutoModelForCausalLM.from_pretrained(tmp_path), sequences())
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-4)
    assert (merged - before).abs().max() > 1.0
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(base)


def test_tied_embeddings_stay_tied(tmp_path: Path, demonstrations: Path) -> None:
    base = tiny.save_student(tmp_path / "base", tied=True)
    out = tmp_path / "student"
    run(TuneTask(out, Source(str(base)), demonstrations, TUNE, RESOURCES, seed=0), CPU)
    student = AutoModelForCausalLM.from_pretrained(out)
    assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()
    assert not torch.equal(
        student.lm_head.weight, AutoModelForCausalLM.from_pretrained(base).lm_head.weight
    )


def test_too_long_demonstrations_are_left_out_and_counted(tmp_path: Path, tune: Any) -> None:
    lengths = sorted(len(sequence) for sequence in sequences())
    counts = tune(tmp_path / "some", max_length=lengths[0] + 8)
    assert counts["left_out"]["too_long"] > 0
    assert counts["examples"] + counts["held_out"] + counts["left_out"]["too_long"] == 24
    with pytest.raises(DataError, match="24 too_long"):
        tune(tmp_path / "none", max_length=10)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_loss_that_is_not_finite_names_the_step(tmp_path: Path, tune: Any) -> None:
    with pytest.raises(StageError, match="optimizer step 2"):
        tune(tmp_path, learning_rate=1e30, warmup_ratio=0.0, evaluate_every_steps=50)


def test_held_out_questions_are_few_whole_and_stable() -> None:
    ids = [f"q/{number // 2}" for number in range(40)]
    apart = held_out_questions(ids, 0.1, seed=0)
    assert len(apart) == 2
    assert apart == held_out_questions(reversed(ids), 0.1, seed=0)
    assert apart != held_out_questions(ids, 0.1, seed=1)
    assert held_out_questions(ids, 0.0, seed=0) == frozenset()
    assert held_out_questions(["q/1", "q/1"], 0.5, seed=0) == frozenset()
    assert len(held_out_questions(["q/1", "q/2"], 0.01, seed=0)) == 1
    assert len(held_out_questions(["q/1", "q/2"], 0.99, seed=0)) == 1


def test_tuning_has_one_denominator_for_the_whole_batch() -> None:
    examples = [TrainingExample("q", (sequence,)) for sequence in sequences()]
    expected = sum(len(sequence.completion_ids) for sequence in sequences())
    assert Tuning().denominator(examples) == expected
