"""The same training by us and by TRL: each function is one measurement in a fresh process."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sirt_ray.core.encoding import TrainingExample
from tests.bench.workload import (
    EOS,
    MAX_LENGTH,
    ROW_HOLDS,
    Measured,
    Setting,
    Workload,
    flops,
    memory,
    model,
    warm_up,
)


def ours(workload: Workload, units: int, setting: Setting) -> Measured:
    import torch

    from sirt_ray.config.resources import TrainerResources
    from sirt_ray.config.training import RefineConfig, TuneConfig
    from sirt_ray.training import attention
    from sirt_ray.training.capabilities import probe
    from sirt_ray.training.data import TrainingData
    from sirt_ray.training.engine import PlainEngine
    from sirt_ray.training.fit import Fit, Settings
    from sirt_ray.training.forward import CompletionLogps
    from sirt_ray.training.objectives import Refinement, Tuning
    from sirt_ray.training.scoring import reference_logps
    from sirt_ray.training.workdir import WorkDir

    resources = TrainerResources(
        max_tokens_per_micro_batch=setting.ours_at_once, checkpoint_every_steps=10**6
    )
    kind = RefineConfig if workload.pairs else TuneConfig
    config = kind(
        batch_size=setting.batch, epochs=1, select_by="last", warmup_ratio=0.0, dtype=setting.dtype
    )
    attention.register()
    made = model(setting)
    made.set_attn_implementation(attention.PACKED)
    module = CompletionLogps(made, probe(made))
    assert module.capabilities.packed
    warm_up(made, setting)

    class Unsaved(PlainEngine):
        """TRL saves nothing here, either."""

        def trained(self) -> None:
            return None

    engine = Unsaved(module, config, torch.device(setting.device))
    examples = workload.examples(units, setting.vocabulary)
    settings = Settings(config, resources, 0)

    def train(examples: list[TrainingExample]) -> None:
        work = WorkDir(Path(tempfile.mkdtemp()))
        work.truncate(0)
        objective: Any = Tuning()
        if isinstance(config, RefineConfig):
            objective = Refinement(config)
            found = reference_logps(
                engine,
                examples,
                config.max_length,
                resources.max_tokens_per_micro_batch,
                work,
            )
            examples = [
                TrainingExample(example.question_id, example.sequences, logps)
                for example, logps in zip(examples, found, strict=True)
                if logps is not None
            ]
        Fit(engine, objective, TrainingData(examples, []), settings, work).run()

    with memory(setting) as mib:
        began = time.perf_counter()
        train(examples)
        seconds = time.perf_counter() - began
    return Measured(units, seconds, mib(), flops(made, examples, setting.batch, shared=True))


def trl(workload: Workload, units: int, setting: Setting) -> Measured:
    from transformers import TrainerCallback

    examples = workload.examples(units, setting.vocabulary)
    made = model(replace(setting, dtype=setting.trl_weights))
    warm_up(made, setting)
    clock = _Clock()

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            clock.stop()

    given: dict[str, Any] = {
        "model": made,
        "processing_class": _tokenizer(setting.vocabulary),
        "callbacks": [Timed()],
    }
    arguments: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "num_train_epochs": 1,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": setting.device == "cpu",
        "bf16": setting.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "dataset_num_proc": None,
        "max_length": MAX_LENGTH,
    }
    if workload.pairs:
        trainer = _trl_dpo(examples, given, arguments, setting, clock)
    else:
        trainer = _trl_sft(examples, given, arguments, setting)
    with memory(setting) as mib:
        trainer.train()
    return Measured(units, clock.seconds, mib(), flops(made, examples, setting.batch, shared=False))


def _trl_dpo(
    examples: list[TrainingExample],
    given: dict[str, Any],
    arguments: dict[str, Any],
    setting: Setting,
    clock: "_Clock",
) -> Any:
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class Timed(DPOTrainer):
        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            clock.start()
            made = super()._precompute_ref_logps(*args, **kwargs)
            clock.stop()
            return made

    rows = [
        {
            "prompt": _text(e.sequences[0].prompt_ids),
            "chosen": " " + _text(e.sequences[0].completion_ids[:-1]),
            "rejected": " " + _text(e.sequences[1].completion_ids[:-1]),
        }
        for e in examples
    ]
    config = DPOConfig(
        **arguments,
        per_device_train_batch_size=setting.trl_at_once,
        gradient_accumulation_steps=setting.batch // setting.trl_at_once,
        precompute_ref_log_probs=True,
    )
    return Timed(args=config, train_dataset=Dataset.from_list(rows), **given)


def _trl_sft(
    examples: list[TrainingExample],
    given: dict[str, Any],
    arguments: dict[str, Any],
    setting: Setting,
) -> Any:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = [
        {
            "input_ids": [*s.prompt_ids, *s.completion_ids],
            "completion_mask": [0] * len(s.prompt_ids) + [1] * len(s.completion_ids),
        }
        for e in examples
        for s in e.sequences
    ]
    config = SFTConfig(
        **arguments,
        per_device_train_batch_size=setting.trl_rows_at_once,
        gradient_accumulation_steps=setting.batch // ROW_HOLDS // setting.trl_rows_at_once,
        packing=True,
        completion_only_loss=True,
    )
    return SFTTrainer(args=config, train_dataset=Dataset.from_list(rows), **given)


class _Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def start(self) -> None:
        self._began = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._began


def _tokenizer(vocabulary: int) -> Any:
    """Words "t0", "t1", ... of one token each, so that TRL's own tokenising gives our ids back."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"t{number}": number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=f"t{EOS}", pad_token="t0", unk_token="t0"
    )


def _text(ids: tuple[int, ...]) -> str:
    return " ".join(f"t{number}" for number in ids)
