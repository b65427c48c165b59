"""A Hugging Face model as the trainer wants it: dtype, no dropout, LoRA, and its content's key."""

import contextlib
import hashlib
from collections.abc import Generator
from typing import Any

import torch

from sirt_ray.core.encoding import Tokenizer
from sirt_ray.errors import ModelError
from sirt_ray.optimization import LoraConfig, TrainingConfig
from sirt_ray.training import attention, quantization
from sirt_ray.training.model_errors import why_not_loaded
from sirt_ray.training.tasks import Source

Model = Any
"""`transformers.PreTrainedModel`, or PEFT's wrapper of one."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    source: Source, config: TrainingConfig, quantized_on: torch.device | None = None
) -> Model:
    """The model on the CPU in `config.dtype`, every dropout of its own switched off.

    Without dropout the student and its reference agree at step 0. Where the job quantises and a
    device is given, the model is on that device in 4 bits. Raises ModelError, and ResourceError
    where it cannot be quantised.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quantized: dict[str, Any] = {}
    if config.quantizes and quantized_on is not None:
        quantized = quantization.arguments(DTYPES[config.dtype], quantized_on)
    with _explained(source):
        settings = AutoConfig.from_pretrained(
            source.here, revision=source.revision, trust_remote_code=False
        )
        for name, value in list(vars(settings).items()):
            if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
                setattr(settings, name, 0.0)
        attention.register()
        return AutoModelForCausalLM.from_pretrained(
            source.here,
            revision=source.revision,
            trust_remote_code=False,
            use_safetensors=True,
            config=settings,
            dtype=DTYPES[config.dtype],
            attn_implementation=attention.PACKED if _chooses_attention(settings) else None,
            **quantized,
        )


def _chooses_attention(settings: Any) -> bool:
    """Whether the architecture lets its attention be chosen; one that does not keeps its own."""
    from transformers import AutoModelForCausalLM

    kind = AutoModelForCausalLM._model_mapping.get(type(settings), None)
    return getattr(kind, "_supports_attention_backend", False)


def load_tokenizer(source: Source) -> Tokenizer:
    from transformers import AutoTokenizer

    with _explained(source):
        return AutoTokenizer.from_pretrained(
            source.here, revision=source.revision, trust_remote_code=False
        )


def add_lora(model: Model, lora: LoraConfig, source: Source, seed: int) -> Model:
    """PEFT's wrapper with fresh adapters, the same for the same seed; only they are trained.

    They are of the model's type, as DeepSpeed has them: in float32 beside a base in bfloat16 their
    inputs would be kept a second time, at twice the size.
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
        if parameter.requires_grad:  # A quantised base has them made in float32 all the same.
            parameter.data = parameter.data.to(dtype)
    return wrapped


def prepare(model: Model, source: Source, config: TrainingConfig, seed: int) -> Model:
    """Adapters where the job asks for them."""
    return model if config.lora is None else add_lora(model, config.lora, source, seed)


def checkpoint_activations(model: Model) -> None:
    """Recompute activations in the backward pass instead of keeping them."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def weights_key(model: Model) -> str:
    """The content of the parameters as they are loaded: names, shapes, dtypes and values.

    Those of the state dictionary: a quantised parameter by itself lacks its scales.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _explained(source: Source) -> Generator[None]:
    """`transformers` reports a wrong name, a missing file and a broken one as OSError or
    ValueError; both are the job's to mend."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ModelError(why_not_loaded(source.name, error)) from error
