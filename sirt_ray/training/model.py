"""Hugging Face models for training: loading, QLoRA, LoRA adapters, and the key of the weights."""

import contextlib
import hashlib
from collections.abc import Generator
from typing import Any

import torch

from sirt_ray.config.training import LoraConfig, TrainingConfig
from sirt_ray.core.encoding import Tokenizer
from sirt_ray.errors import ModelError
from sirt_ray.training import attention
from sirt_ray.training.model_errors import check_quantization, why_not_loaded
from sirt_ray.training.tasks import Source

Model = Any
"""`transformers.PreTrainedModel`, or PEFT's wrapper of one."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    source: Source, config: TrainingConfig, quantized_on: torch.device | None = None
) -> Model:
    """Load the model on the CPU in `config.dtype`, with all of its dropout switched off.

    Without dropout the student and its reference agree at step 0. If the job quantises and
    `quantized_on` is given, the model is loaded on that device in 4 bits.

    Raises ModelError if the model cannot be loaded, and ResourceError if it cannot be quantised.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quantized: dict[str, Any] = {}
    if config.quantizes and quantized_on is not None:
        quantized = quantization_arguments(DTYPES[config.dtype], quantized_on)
    with _as_model_error(source):
        settings = AutoConfig.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=False
        )
        configure(settings)
        attention.register()
        return AutoModelForCausalLM.from_pretrained(
            source.location,
            revision=source.revision,
            trust_remote_code=False,
            use_safetensors=True,
            config=settings,
            dtype=DTYPES[config.dtype],
            attn_implementation=attention.PACKED if is_selectable(settings) else None,
            **quantized,
        )


def configure(settings: Any) -> None:
    """Switch off all dropout in a model's configuration."""
    for name, value in list(vars(settings).items()):
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(settings, name, 0.0)


def is_selectable(settings: Any) -> bool:
    """Return whether the architecture supports attention backends; others keep their own."""
    from transformers import AutoModelForCausalLM

    kind = AutoModelForCausalLM._model_mapping.get(type(settings), None)
    return getattr(kind, "_supports_attention_backend", False)


def quantization_arguments(compute_dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` loads in 4 bits (nf4, double
    quantisation) on `device` and computes in `compute_dtype`.

    QLoRA, Dettmers et al. 2023, section 3; `transformers` and bitsandbytes implement it. Raises
    ResourceError without a GPU or bitsandbytes.
    """
    check_quantization(device.type == "cuda")
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
        ),
        "device_map": {"": device},
    }


def load_tokenizer(source: Source) -> Tokenizer:
    """Load the model's tokenizer. Raises ModelError if it cannot be loaded."""
    from transformers import AutoTokenizer

    with _as_model_error(source):
        return AutoTokenizer.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=False
        )


def prepare(model: Model, source: Source, config: TrainingConfig, seed: int) -> Model:
    """Add LoRA adapters if the job has them."""
    return model if config.lora is None else add_lora(model, config.lora, source, seed)


def add_lora(model: Model, lora: LoraConfig, source: Source, seed: int) -> Model:
    """Wrap the model with fresh PEFT adapters, the same for the same seed; only they are trained.

    Adapters have the model's dtype, as DeepSpeed has them: with float32 adapters on a bfloat16
    base, their inputs would be kept a second time, at twice the size.
    """
    import peft

    torch.manual_seed(seed)
    dtype = next(model.parameters()).dtype
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]: fractions work as well
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=source.name,
            revision=source.revision,
        ),
        autocast_adapter_dtype=False,
    )
    for parameter in wrapped.parameters():
        if parameter.requires_grad:  # PEFT makes those of a quantised base in float32 regardless.
            parameter.data = parameter.data.to(dtype)
    return wrapped


def checkpoint_activations(model: Model) -> None:
    """Recompute activations in the backward pass instead of keeping them."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def weights_key(model: Model) -> str:
    """Return the content hash of the parameters as loaded: names, shapes, dtypes and values.

    It covers the state dictionary, because a quantised parameter by itself lacks its scales.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _as_model_error(source: Source) -> Generator[None]:
    """Raise ModelError for the OSError or ValueError with which `transformers` reports a wrong
    name, a missing file and a broken one: all of them are the job's to fix."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ModelError(why_not_loaded(source.name, error)) from error
