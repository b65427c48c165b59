"""Our losses and TRL's trainers: the same loss and gradient on the same texts and weights.

Ours is the first optimizer step of a whole refinement, with its reference's pass and its packed
batches; TRL's is the trainer's own loss of its own batch. TRL reads texts, we read ids.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import RefineConfig
from sirt_ray.training.run import run
from sirt_ray.training.tasks import ReferenceTask, RefineTask, Source
from sirt_ray.training.workdir import read_lines
from tests.helpers import tiny

pytestmark = pytest.mark.timeout(240)

CPU = torch.device("cpu")
RESOURCES = TrainerResources()
NUMBERS = range(6)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy, the reference that it has moved away from, and pairs."""
    assets = tmp_path_factory.mktemp("trl")
    tiny.save_student(assets / "reference", seed=1, initializer_range=0.05)
    tiny.save_student(assets / "policy", seed=0, initializer_range=0.05)
    tiny.write_pairs(assets / "pairs", NUMBERS)
    return assets


def refine_config(**changed: Any) -> RefineConfig:
    return RefineConfig(
        batch_size=2 * len(NUMBERS), max_steps=1, validation_fraction=0.0, **changed
    )


def ours(assets: Path, out: Path, **settings: Any) -> dict[str, float]:
    """What our trainer measures on all pairs before its first update."""
    config = refine_config(**settings)
    policy, reference = (Source(str(assets / name)) for name in ("policy", "reference"))
    logps = out / "logps"
    run(ReferenceTask(logps, reference, assets / "pairs", config, RESOURCES), CPU)
    student = out / "student"
    run(RefineTask(student, policy, assets / "pairs", logps, config, RESOURCES, 0, reference), CPU)
    (line,) = read_lines(student / "metrics.jsonl")
    return line


def models(assets: Path) -> tuple[Any, Any]:
    return tuple(AutoModelForCausalLM.from_pretrained(assets / n) for n in ("policy", "reference"))


def rows() -> Iterator[dict[str, Any]]:
    for number in NUMBERS:
        pair = tiny.pair(number)
        assert pair.rejected is not None
        chosen, rejected = (side.completion.text for side in (pair.chosen, pair.rejected))
        yield {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}


def given(out: Path, batch_size: int, **settings: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out / "trl"),
        "per_device_train_batch_size": batch_size,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        **settings,
    }


def measured(trainer: Any) -> tuple[float, float]:
    """The mean of the trainer's losses over its batches, and the norm of its gradient."""
    batches = list(trainer.get_train_dataloader())
    losses = [trainer.compute_loss(trainer.model, batch) / len(batches) for batch in batches]
    total = torch.stack(losses).sum()
    total.backward()
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    return total.item(), torch.nn.utils.get_total_norm(gradients).item()


def assert_same(our_line: dict[str, float], theirs: tuple[float, float]) -> None:
    assert our_line["loss"] == pytest.approx(theirs[0], rel=1e-5)
    assert our_line["grad_norm"] == pytest.approx(theirs[1], rel=1e-4)


WHOLE, SINGLY = len(NUMBERS), 1


@pytest.mark.parametrize(
    ("our_settings", "trl_settings", "batch_size"),
    [
        pytest.param({}, {"loss_type": "sigmoid"}, WHOLE, id="sigmoid"),
        pytest.param(
            # Sorted by margin, which for one pair is cDPO.
            {"label_smoothing": 0.1},
            {"loss_type": "aot", "label_smoothing": 0.1},
            SINGLY,
            id="cdpo",
        ),
        pytest.param(
            {"loss": "robust", "label_smoothing": 0.1},
            {"loss_type": "robust", "label_smoothing": 0.1},
            WHOLE,
            id="robust",
        ),
        pytest.param(
            {"length_normalised": True}, {"loss_type": "sigmoid_norm"}, WHOLE, id="sigmoid_norm"
        ),
        pytest.param(
            # TRL knows IPO with log-probabilities a token only.
            {"loss": "ipo", "length_normalised": True},
            {"loss_type": "ipo"},
            WHOLE,
            id="ipo",
        ),
        pytest.param(
            # TRL's NLL is a mean over a batch's tokens, ours over completions: one for one pair.
            {"nll_weight": 0.7},
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
            SINGLY,
            id="rpo",
        ),
    ],
)
def test_losses_with_a_reference(
    assets: Path,
    tmp_path: Path,
    our_settings: dict[str, Any],
    trl_settings: dict[str, Any],
    batch_size: int,
) -> None:
    policy, reference = models(assets)
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(**given(tmp_path, batch_size, beta=0.2, **trl_settings)),
        train_dataset=Dataset.from_list(list(rows())),
        processing_class=tiny.byte_tokenizer(),
    )
    assert_same(ours(assets, tmp_path, beta=0.2, **our_settings), measured(trainer))


def test_simpo(assets: Path, tmp_path: Path) -> None:
    settings = {"beta": 2.0, "label_smoothing": 0.1}
    theirs = given(
        tmp_path, WHOLE, loss_type="simpo", simpo_gamma=0.8, cpo_alpha=0.0, max_length=512
    )
    trainer = CPOTrainer(
        model=models(assets)[0],
        args=CPOConfig(**theirs, **settings),
        train_dataset=Dataset.from_list(list(rows())),
        processing_class=tiny.byte_tokenizer(),
    )
    line = ours(assets, tmp_path, loss="simpo", simpo_margin=0.8, **settings)
    assert_same(line, measured(trainer))


def test_orpos_odds_ratio(assets: Path, tmp_path: Path) -> None:
    """Not the whole loss: TRL's NLL is of the prompts' tokens, too."""
    trainer = ORPOTrainer(
        model=models(assets)[0],
        args=ORPOConfig(**given(tmp_path, WHOLE, beta=0.3, max_length=512)),
        train_dataset=Dataset.from_list(list(rows())),
        processing_class=tiny.byte_tokenizer(),
    )
    (batch,) = trainer.get_train_dataloader()
    chosen, rejected = trainer.concatenated_forward(trainer.model, batch)[:2]
    odds_ratio = -trainer.odds_ratio_loss(chosen, rejected)[0].mean().item()
    line = ours(assets, tmp_path, loss="orpo", beta=0.3)
    assert line["preference_loss"] == pytest.approx(odds_ratio, rel=1e-5)


def judged(pairs: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Backwards, because TRL takes another question's completion from the row before and we from
    the question after."""
    backwards = list(pairs)[::-1]
    for side, label in (("chosen", True), ("rejected", False)):
        for row in backwards:
            yield {"prompt": row["prompt"], "completion": row[side], "label": label}


def test_kto(assets: Path, tmp_path: Path) -> None:
    policy, reference = models(assets)
    settings = {"beta": 0.2, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    theirs = given(tmp_path, 2 * len(NUMBERS), train_sampling_strategy="sequential")
    trainer = KTOTrainer(
        model=policy,
        ref_model=reference,
        args=KTOConfig(**theirs, **settings),
        train_dataset=Dataset.from_list(list(judged(rows()))),
        processing_class=tiny.byte_tokenizer(),
    )
    line = ours(assets, tmp_path, loss="kto", **settings)
    assert line["kl"] > 0.1
    assert_same(line, measured(trainer))
