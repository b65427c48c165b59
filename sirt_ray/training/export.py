"""Chosen weights -> a student's folder that `transformers` and vLLM load as it is.

The base model is read again and the trained parameters are put over it, in one plain process. So
full training and LoRA end in the same way, whatever ZeRO stage they were trained at.
"""

import shutil
from typing import Any

from sirt_ray.errors import ArtifactError
from sirt_ray.optimization import TrainingConfig
from sirt_ray.storage import object_store
from sirt_ray.training.model import add_lora, load_model, load_tokenizer
from sirt_ray.training.tasks import Source
from sirt_ray.training.workdir import WorkFolder, storing

ADAPTER = "adapter"
"""Folder beside the merged model with the PEFT adapter, its base named."""


def export(source: Source, config: TrainingConfig, work: WorkFolder, step: int) -> None:
    """Fill `work.export` with config, safetensors, tokenizer and the training's metrics."""
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerBase

    folder = work.export
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    object_store.pull(work.weights(step))
    object_store.pull(work.metrics)
    trained = load_file(work.weights(step))
    model = load_model(source, config)
    if config.lora is not None:
        model = add_lora(model, config.lora, source, seed=0)
    unexpected = model.load_state_dict(trained, strict=False).unexpected_keys
    if unexpected:
        raise ArtifactError(
            f"The trained weights do not belong to the model {source.name!r}: it has no parameter"
            f" {unexpected[0]!r}. Was the model's folder changed during the training?"
        )
    with storing(folder):
        if config.lora is not None:
            model.save_pretrained(folder / ADAPTER)
            model = model.merge_and_unload()
        _make_consistent(model.generation_config)
        model.save_pretrained(folder)
        tokenizer = load_tokenizer(source)
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        tokenizer.save_pretrained(str(folder))
        shutil.copyfile(work.metrics, folder / work.metrics.name)


def _make_consistent(generation: Any) -> None:
    """Some published models name a temperature without `do_sample`; `transformers` loads that
    with a warning, but refuses to save it."""
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True
