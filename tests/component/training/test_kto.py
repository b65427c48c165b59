"""KTO, and references that are not the student: by hand, and however the batches are cut."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sirt_ray.artifacts import parquet
from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import RefineConfig
from sirt_ray.core.encoding import TokenSequence, TrainingExample, encode_pair
from sirt_ray.errors import ArtifactError, DataError, StageError
from sirt_ray.training.data import pair_examples, refinement_data, stored_reference
from sirt_ray.training.engine import PlainEngine
from sirt_ray.training.fit import Fit, Settings
from sirt_ray.training.forward import CompletionLogps, ModelCapabilities
from sirt_ray.training.model import load_model
from sirt_ray.training.objectives import UnpairedRefinement
from sirt_ray.training.run import REFERENCE_FILE, run
from sirt_ray.training.tasks import ReferenceTask, RefineTask, Source
from sirt_ray.training.workdir import WorkDir, read_lines
from tests.helpers import tiny

CPU = torch.device("cpu")
REFINE = RefineConfig(batch_size=8, epochs=2, learning_rate=1e-3, warmup_steps=0)
RESOURCES = TrainerResources()
KTO = {"loss": "kto", "undesirable_weight": 0.5, "batch_size": 32, "validation_fraction": 0.0}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `base`, another one, `moved`, and the pairs 0 .. 15."""
    assets = tmp_path_factory.mktemp("refining")
    tiny.save_student(assets / "base", seed=1)
    tiny.save_student(assets / "moved", seed=0)
    tiny.write_pairs(assets / "pairs", range(16))
    return assets


def reference_of(model: Path, pairs: Path, out: Path, **changed: Any) -> Path:
    config = REFINE.model_copy(update=changed)
    run(ReferenceTask(out, Source(str(model)), pairs, config, RESOURCES), CPU)
    return out


@pytest.fixture(scope="module")
def reference(assets: Path) -> Path:
    return reference_of(assets / "base", assets / "pairs", assets / "reference")


@pytest.fixture(scope="module")
def kto_reference(assets: Path) -> Path:
    return reference_of(assets / "base", assets / "pairs", assets / "kto_reference", **KTO)


def refined(
    out: Path, assets: Path, student: Path, reference: Path, of: Path, **changed: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The counts and the lines of a refinement of `student` that is held to the model `of`."""
    config = REFINE.model_copy(update=changed)
    sources = Source(str(student)), Source(str(of))
    task = RefineTask(
        out, sources[0], assets / "pairs", reference, config, RESOURCES, 0, sources[1]
    )
    return run(task, CPU), read_lines(out / "metrics.jsonl")


def log_ratios(assets: Path, sequences: list[TokenSequence]) -> torch.Tensor:
    """log moved(y|x) / base(y|x) of each sequence by itself."""
    with torch.no_grad():
        moved, base = (
            tiny.completion_logps(AutoModelForCausalLM.from_pretrained(assets / name), sequences)
            for name in ("moved", "base")
        )
    return moved - base


def test_a_reference_that_is_not_the_student_is_no_error(
    tmp_path: Path, assets: Path, reference: Path
) -> None:
    whole = {"batch_size": 16, "max_steps": 1, "validation_fraction": 0.0}
    counts, (line,) = refined(
        tmp_path, assets, assets / "moved", reference, of=assets / "base", **whole
    )
    assert "reference" not in counts
    sequences = [s for number in range(16) for s in encode_pair(tiny.pair(number)).sequences]
    ratios = log_ratios(assets, sequences).view(16, 2)
    margins = 0.1 * (ratios[:, 0] - ratios[:, 1])
    assert line["loss"] == pytest.approx(-margins.sigmoid().log().mean().item(), rel=1e-5)
    assert line["absolute_margin"] > 1e-2


def test_reference_is_identified_by_content_and_not_by_name(tmp_path: Path, assets: Path) -> None:
    copied = Path(shutil.copytree(assets / "base", tmp_path / "copied"))
    other = tiny.write_pairs(tmp_path / "other", range(4, 16))
    stale = reference_of(assets / "base", other, tmp_path / "stale")
    counts, lines = refined(
        tmp_path / "out", assets, assets / "base", stale, of=copied, max_steps=1
    )
    assert "computed again" in counts["reference"]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_stale_reference_of_another_model_is_refused(
    tmp_path: Path, assets: Path, reference: Path
) -> None:
    third = tiny.save_student(tmp_path / "third", seed=2)
    with pytest.raises(ArtifactError, match="of other weights than"):
        refined(tmp_path / "out", assets, assets / "moved", reference, of=third)


def test_kto_by_hand_on_a_student_that_has_moved(
    tmp_path: Path, assets: Path, kto_reference: Path
) -> None:
    counts, (line,) = refined(
        tmp_path, assets, assets / "moved", kto_reference, assets / "base", **KTO, max_steps=1
    )
    # Of one question there is one pair, so nothing is there twice.
    assert counts["examples"] == 32
    pairs = [encode_pair(tiny.pair(number)).sequences for number in range(16)]
    mismatched = [
        TokenSequence(sequence.prompt_ids, other.completion_ids)
        for pair, following in zip(pairs, pairs[1:] + pairs[:1], strict=True)
        for sequence, other in zip(pair, following, strict=True)
    ]
    kl = log_ratios(assets, mismatched).mean().item()
    assert kl > 0.1
    ratios = log_ratios(assets, [sequence for pair in pairs for sequence in pair]).view(16, 2)
    gains = 0.1 * (ratios - kl) * torch.tensor([1.0, -1.0])
    expected = ((1 - gains.sigmoid()) * torch.tensor([1.0, 0.5])).mean()
    assert line["kl"] == pytest.approx(kl, rel=1e-5)
    assert line["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_kto_is_the_same_however_its_batches_are_cut_and_laid_out(
    tmp_path: Path, assets: Path, kto_reference: Path
) -> None:
    config = REFINE.model_copy(update={**KTO, "batch_size": 12, "max_steps": 3})
    stored = stored_reference(kto_reference, parquet.counts(kto_reference / REFERENCE_FILE)["key"])
    assert stored is not None
    data = refinement_data(pair_examples(assets / "pairs", mismatched=True), stored, config, 0)

    def trained(name: str, packed: bool, max_tokens: int) -> list[dict[str, float]]:
        model = load_model(Source(str(assets / "moved")), config)
        engine = PlainEngine(CompletionLogps(model, ModelCapabilities(packed, packed)), config, CPU)
        resources = TrainerResources(max_tokens_per_micro_batch=max_tokens)
        work = WorkDir(tmp_path / name)
        objective = UnpairedRefinement(config, is_reference=False)
        Fit(engine, objective, data, Settings(config, resources, seed=0), work).run()
        lines = read_lines(work.metrics)
        return [{name: line[name] for name in objective.metrics} for line in lines]

    whole = trained("whole", packed=True, max_tokens=100_000)
    assert whole[0]["kl"] > 0.1
    for other in (trained("cut", True, 1), trained("padded", False, 600)):
        for one, two in zip(whole, other, strict=True):
            assert two == pytest.approx(one, rel=1e-4, abs=1e-5)


def test_kto_starts_at_half_the_weights_and_parts_right_from_wrong(
    tmp_path: Path, assets: Path, kto_reference: Path
) -> None:
    changed = {**KTO, "batch_size": 8}
    base = assets / "base"
    _, lines = refined(tmp_path, assets, base, kto_reference, of=base, **changed)
    desirable = lines[0]["desirable"]
    assert lines[0]["loss"] == pytest.approx(0.5 * (desirable + 0.5 * (1 - desirable)), abs=1e-5)
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert lines[-1]["margin"] > 0.1


def test_ktos_wrong_reference_is_caught_before_the_first_update(
    assets: Path, kto_reference: Path
) -> None:
    config = REFINE.model_copy(update=KTO)
    objective = UnpairedRefinement(config, is_reference=True)
    objective.check_first_step({"absolute_reward": 1e-6, "kl": 1e-6})
    with pytest.raises(StageError, match="do not belong to these weights"):
        objective.check_first_step({"absolute_reward": 1e-6, "kl": 0.1})


def test_kto_takes_each_completion_once_on_its_side(tmp_path: Path) -> None:
    examples = pair_examples(tiny.write_pairs(tmp_path, [1, 1, 2]), mismatched=True)
    reference = [(float(n), n + 0.1, n + 0.2, n + 0.3) for n in range(3)]
    data = refinement_data(examples, reference, REFINE.model_copy(update=KTO), seed=0)
    assert [(example.question_id, example.desirable) for example in data.train] == [
        ("sums/train/1", True),
        ("sums/train/1", False),
        ("sums/train/2", True),
        ("sums/train/2", False),
    ]
    assert data.left_out == {"chosen_again": 1, "rejected_again": 1}
    (one, _), (two, _) = (encode_pair(tiny.pair(number)).sequences for number in (1, 2))
    foreign = TokenSequence(one.prompt_ids, two.completion_ids)
    mismatched = TrainingExample("sums/train/1", (foreign,), (0.2,))
    assert data.train[0] == TrainingExample("sums/train/1", (one,), (0.0,), True, mismatched)


def test_kto_of_one_question_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one question"):
        pair_examples(tiny.write_pairs(tmp_path, [1, 1]), mismatched=True)


def test_what_is_only_imitated_needs_no_reference_and_cannot_be_compared(
    tmp_path: Path, assets: Path
) -> None:
    imitated = [replace(tiny.pair(number), rejected=None) for number in range(12)]
    rows = [parquet.to_row(pair) for pair in (*imitated, imitated[3])]
    parquet.write(tmp_path / "pairs" / "pairs.parquet", rows, parquet.PAIR)
    base = Source(str(assets / "base"))

    def trained(out: Path, loss: str) -> dict[str, Any]:
        config = REFINE.model_copy(update={"loss": loss, "validation_fraction": 0.25})
        return run(RefineTask(out, base, tmp_path / "pairs", None, config, RESOURCES, 0), CPU)

    counts = trained(tmp_path / "imitating", "rft")
    assert (counts["examples"], counts["held_out"]) == (9, 3)
    assert counts["left_out"] == {"chosen_again": 1}
    losses = [line["loss"] for line in read_lines(tmp_path / "imitating/metrics.jsonl")]
    assert losses[-1] < losses[0]
    with pytest.raises(DataError, match="'right' makes such"):
        trained(tmp_path / "comparing", "sigmoid")
