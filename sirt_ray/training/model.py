"""Hugging Face models for training: loading, QLoRA, LoRA adapters, and the key of the weights."""

import hashlib
import warnings
from typing import Any

import torch

from sirt_ray.config.training import LoraConfig, TrainingConfig
from sirt_ray.core.encoding import Tokenizer
from sirt_ray.errors import ModelError
from sirt_ray.training import attention
from sirt_ray.training.model_checks import architecture_problems, loading_problems
from sirt_ray.training.model_errors import check_quantization, loading
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

    Raises ModelError if the model cannot be loaded, or if its weights are not those of its
    architecture, and ResourceError if it cannot be quantised.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quantized: dict[str, Any] = {}
    if config.quantizes and quantized_on is not None:
        quantized = quantization_arguments(DTYPES[config.dtype], quantized_on)
    with loading(source.name):
        settings = AutoConfig.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=False
        )
        _refuse(source, architecture_problems(settings, "trained"))
        configure(settings)
        attention.register()
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.location,
            revision=source.revision,
            trust_remote_code=False,
            use_safetensors=True,
            config=settings,
            dtype=DTYPES[config.dtype],
            attn_implementation=attention_of(settings),
            ignore_mismatched_sizes=True,  # Reported, and refused, with all else that is wrong.
            output_loading_info=True,
            **quantized,
        )
    model, info = loaded
    _refuse(source, loading_problems(info))
    return model


def _refuse(source: Source, problems: list[str]) -> None:
    if problems:
        raise ModelError("\n".join(f"{source.name} {what}" for what in problems))


def configure(settings: Any) -> None:
    """Switch off all dropout in a model's configuration."""
    for name, value in list(vars(settings).items()):
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(settings, name, 0.0)


def attention_of(settings: Any) -> str | None:
    """Return the attention to load a model with, by its name in `transformers`: the packed one for
    architectures with attention backends, unless they ask for more than softmax (sinks, soft caps),
    which have their own, eager one; None for an architecture without backends.

    The probe (capabilities.py) has the last word: this is only what an architecture says of itself.
    """
    from transformers import AutoModelForCausalLM

    kind = AutoModelForCausalLM._model_mapping.get(type(settings), None)
    if not getattr(kind, "_supports_attention_backend", False):
        return None
    soft_cap = getattr(settings.get_text_config(), "attn_logit_softcapping", None)
    is_softmax = getattr(kind, "_supports_sdpa", False) and soft_cap is None
    return attention.PACKED if is_softmax else attention.EAGER


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

    with loading(source.name):
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

    Raises ModelError if the targets are not layers of the model, or are the ends that it ties.
    """
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    torch.manual_seed(seed)
    dtype = next(model.parameters()).dtype
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]: fractions work as well
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=source.name,
        revision=source.revision,
    )
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = ends[1] is not None and ends[0].weight is ends[1].weight
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            wrapped = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        is_no_matrix = "not supported" in str(error)  # PEFT's text has the whole module in it.
        reason = "it names modules that are no linear layers" if is_no_matrix else str(error)
        raise ModelError(
            f"lora.target_modules {lora.target_modules} does not fit {source.name}:"
            f" {reason.rstrip('.')}. Name linear layers of the model, or set it to all-linear"
        ) from error
    if is_tied and any(isinstance(end, BaseTunerLayer) for end in _ends(wrapped)):
        raise ModelError(
            f"lora.target_modules {lora.target_modules} reaches the embeddings or the head of"
            f" {source.name}, which are one matrix (tie_word_embeddings in its config.json): the"
            " merged student would be another model than the one that was trained. Take them out of"
            " target_modules, or untie them in the model's folder"
        )
    for parameter in wrapped.parameters():
        if parameter.requires_grad:  # PEFT makes those of a quantised base in float32 regardless.
            parameter.data = parameter.data.to(dtype)
    return wrapped


def _ends(wrapped: Model) -> tuple[Any, Any]:
    """Return the embeddings and the head of a model with adapters."""
    base = wrapped.get_base_model()
    return base.get_input_embeddings(), base.get_output_embeddings()


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
