"""Runs whose students are tiny real models, as `sirt export` and `sirt push` take them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

from sirt_ray.artifacts.store import Artifact
from sirt_ray.cli import main
from sirt_ray.core.interfaces import Counts, Model
from tests.helpers.tiny import save_student, save_talker, write_demonstrations, write_pairs
from tests.helpers.written_runs import WrittenStages, write_run

TESTS = {
    "teacher": {"gsm8k": "1111", "multiarith": "111"},
    "baseline": {"gsm8k": "0000", "multiarith": "000"},
    "round_00": {"gsm8k": "1000", "multiarith": "100"},
    "round_01": {"gsm8k": "1110", "multiarith": "110"},
    "round_02": {"gsm8k": "1111", "multiarith": "111"},
}


class TrainedStages(WrittenStages):
    """Stages whose students are tiny models.

    `lora`: the trainings that made an adapter, which is stored, as by the trainer, next to the
    model that it is merged into.
    """

    def __init__(
        self,
        lora: tuple[int, ...] = (),
        tests: Mapping[str, Mapping[str, str]] = TESTS,
        **known: Any,
    ) -> None:
        super().__init__(tests, **known)
        self.lora = lora

    def demonstrate(self, out: Path, **needs: Any) -> Counts:
        write_demonstrations(out, range(4))
        return super().demonstrate(out, **needs)

    def pair(self, out: Path, *, samples: Artifact, **needs: Any) -> Counts:
        write_pairs(out, range(4))
        return super().pair(out, samples=samples, **needs)

    def tune(self, out: Path, *, base: Model, **needs: Any) -> Counts:
        self._train(out, base.policy.path, 0)
        return {"steps": 1, "chosen_step": 1, "left_out": {}, "examples": 1}

    def refine(self, out: Path, *, student: Model, round_number: int, **needs: Any) -> Counts:
        self._train(out, student.policy.path, round_number)
        return {"steps": 1, "chosen_step": 1, "left_out": {}, "examples": 1}

    def _train(self, out: Path, start: str, number: int) -> None:
        (out / "metrics.jsonl").write_text("{}\n")
        if number not in self.lora:
            save_talker(out, seed=10 + number)
            return
        model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
        torch.manual_seed(number)
        # Other layers each time: a sum of adapters has to handle both.
        layers = ["q_proj", "up_proj"] if number % 2 else ["q_proj", "down_proj", "o_proj"]
        config = peft.LoraConfig(r=2 + number, lora_alpha=7, target_modules=layers)
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        adapted.save_pretrained(out / "adapter")
        save_student(out)  # for its tokenizer
        adapted.merge_and_unload().save_pretrained(out)


def write(root: Path, stages: TrainedStages, rounds: int = 1, **changes: Any) -> Path:
    """Write a run. Adapters need a real base; otherwise the base is a name on the hub."""
    base = str(save_talker(root / "base", seed=1)) if stages.lora else "me/base"
    refine = {"rounds": rounds, "roll_back": True}
    return write_run(root / "mine", stages, student={"model": base}, refine=refine, **changes)


def export(run_dir: Path, out: Path, *more: str) -> int:
    return main.main(["export", str(run_dir), str(out), *more])
