"""What the trainer's workers take of a GPU's memory, against what `sirt plan` says beforehand.

    python -m tests.bench.memory [--layers 20] [--tokens 16384]

The model of `bench-gpu` with full micro-batches of pairs, trained for two optimizer steps by one
worker under DeepSpeed, as in a run; each measurement in a process of its own. `allocated` is what
torch has had allocated at most, against the plan without its share for CUDA and the allocator;
`device` what the driver has given away at the end, against the whole plan.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench import workload
from tests.bench.workload import Setting, Workload, apart

_GIB = 2**30
_STEPS = 2
_BATCH = 60
"""Pairs: a full micro-batch, and what is left."""
_KINDS: dict[str, dict[str, Any]] = {
    "zero_1": {"zero_stage": 1},
    "zero_1, checkpointing": {"zero_stage": 1, "gradient_checkpointing": True},
    "zero_2": {"zero_stage": 2},
    "zero_3": {"zero_stage": 3},
    "zero_2, offload optimizer": {"zero_stage": 2, "offload": "optimizer"},
    "zero_3, offload parameters": {"zero_stage": 3, "offload": "parameters"},
    "lora, zero_1": {"zero_stage": 1, "lora": {"rank": 16}},
    "qlora, zero_1": {"zero_stage": 1, "lora": {"rank": 16, "quantize": "nf4"}},
}


@dataclass(frozen=True)
class Taken:
    """Bytes, and the last step's loss."""

    allocated: int
    device: int
    planned: float
    context: float
    loss: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=workload.GPU.layers)
    parser.add_argument("--tokens", type=int, default=workload.GPU.ours_at_once)
    parser.add_argument("--only", choices=tuple(_KINDS), action="append")
    arguments = parser.parse_args()
    setting = replace(workload.GPU, layers=arguments.layers, ours_at_once=arguments.tokens)
    with tempfile.TemporaryDirectory() as folder:
        apart(_save, Path(folder), setting)
        print(f"{'GiB':28} allocated  planned  ratio    device  planned  ratio")
        for name in arguments.only or _KINDS:
            taken = apart(_train, Path(folder), setting, _KINDS[name])
            inside = taken.planned - taken.context
            print(
                f"{name:28} {taken.allocated / _GIB:9.1f} {inside / _GIB:8.1f}"
                f" {taken.allocated / inside:6.2f} {taken.device / _GIB:9.1f}"
                f" {taken.planned / _GIB:8.1f} {taken.device / taken.planned:6.2f}"
                f"   loss {taken.loss:.5f}",
                flush=True,
            )


def _save(folder: Path, setting: Setting) -> None:
    workload.model(setting).save_pretrained(folder)


def _train(folder: Path, setting: Setting, kind: dict[str, Any]) -> Taken:
    import torch

    from sirt_ray.config.resources import TrainerResources
    from sirt_ray.config.training import RefineConfig
    from sirt_ray.core.encoding import TrainingExample
    from sirt_ray.planning import memory
    from sirt_ray.planning.models import shape_of
    from sirt_ray.training.capabilities import probe
    from sirt_ray.training.data import TrainingData
    from sirt_ray.training.engine import DeepSpeedEngine
    from sirt_ray.training.fit import Fit, Settings
    from sirt_ray.training.forward import CompletionLogps
    from sirt_ray.training.model import checkpoint_activations, load_model, prepare
    from sirt_ray.training.objectives import Refinement
    from sirt_ray.training.scoring import reference_logps
    from sirt_ray.training.tasks import Source
    from sirt_ray.training.workdir import WorkDir, read_lines

    _group_of_one()
    config = RefineConfig.model_validate(
        {
            "batch_size": _BATCH,
            "max_steps": _STEPS,
            "select_by": "last",
            "warmup_steps": 0,
            "dtype": setting.dtype,
            "max_length": 512,
            "lora": kind.get("lora"),
        }
    )
    resources = TrainerResources.model_validate(
        {key: value for key, value in kind.items() if key != "lora"}
        | {"max_tokens_per_micro_batch": setting.ours_at_once, "checkpoint_every_steps": 10**6}
    )
    device, source = torch.device("cuda"), Source(str(folder))
    model = load_model(source, config, quantized_on=device).to(device)
    capabilities = probe(model)
    model = prepare(model, source, config, seed=0)
    if resources.gradient_checkpointing:
        checkpoint_activations(model)

    class Unsaved(DeepSpeedEngine):
        def trained(self) -> None:
            return None

    engine = Unsaved(CompletionLogps(model, capabilities), config, resources, device)
    settings = Settings(config, resources, 0)
    units = _STEPS * _BATCH
    pairs = Workload(completions=2, pairs=1).examples(units, setting.vocabulary)
    limit = resources.max_tokens_per_micro_batch
    logps = reference_logps(engine, pairs, config.max_length, limit)
    pairs = [
        TrainingExample(pair.question_id, pair.sequences, found)
        for pair, found in zip(pairs, logps, strict=True)
        if found is not None
    ]
    work = WorkDir(Path(tempfile.mkdtemp()))
    work.truncate(0)
    Fit(engine, Refinement(config), TrainingData(pairs, []), settings, work).run()
    free, total = torch.cuda.mem_get_info()
    shape = shape_of(str(folder))
    assert shape is not None
    return Taken(
        allocated=torch.cuda.max_memory_allocated(),
        device=total - free,
        planned=memory.of_trainer(shape, config, resources).total,
        context=memory.CONTEXT,
        loss=read_lines(work.metrics)[-1]["loss"],
    )


def _group_of_one() -> None:
    import torch

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tempfile.mkdtemp()}/group", rank=0, world_size=1
    )


if __name__ == "__main__":
    main()
