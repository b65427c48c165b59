"""A Hugging Face model as the trainer wants it: dtype, no dropout, LoRA, and its content's key."""

import contextlib
import hashlib
import importlib.util
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch

from sirt_ray.config.training import LoraConfig, TrainingConfig
from sirt_ray.core.encoding import Tokenizer
from sirt_ray.errors import ModelError, ResourceError
from sirt_ray.training import attention
from sirt_ray.training.tasks import Source

if TYPE_CHECKING:  # What is looked for before a run begins must not wait for torch.
    import torch

# FOLDED training.quantization: QLoRA: the base in 4 bits while adapters are trained on it (Dettmers et al. 2023, section 3).
#
# `transformers` and bitsandbytes do it; here stands what they are asked, and when that is refused.


def check(on_gpu: bool) -> None:
    """Raise ResourceError where a worker could not load a model in 4 bits."""
    missing = [] if on_gpu else ["a GPU for every training worker"]
    if importlib.util.find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes (pip install 'sirt-ray[qlora]')")
    if missing:
        raise ResourceError(
            f"lora.quantize is set (QLoRA), which needs {' and '.join(missing)}. Provide that, or"
            " take lora.quantize away to train LoRA on the base as it is"
        )


def arguments(compute: "torch.dtype", device: "torch.device") -> dict[str, Any]:
    """What `from_pretrained` is given to load in 4 bits, on `device`, and compute in `compute`.

    Raises ResourceError without a GPU or bitsandbytes.
    """
    check(device.type == "cuda")
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        ),
        "device_map": {"": device},
    }


# FOLDED training.model_errors: Why a model could not be loaded, as the libraries report it, and what to do about it.
#
# They raise OSError or ValueError for everything; the cause, where there is one, says which it is.

_PROBE_SECONDS = 5.0


def hub_unreachable() -> str | None:
    """Why the hub cannot be reached; None where it can, or where a proxy stands between. Asked
    first, because the libraries try for half a minute, file by file."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    parts = urlsplit(constants.ENDPOINT)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return None
    try:
        socket.create_connection((host, port), _PROBE_SECONDS).close()
    except OSError as error:
        return f"{constants.ENDPOINT} does not answer ({error})"
    return None


def why_not_loaded(model: str, error: Exception) -> str:
    """`model cannot be loaded: why. What to do`."""
    why, cure = _files(error) if Path(model).is_dir() else _hub(model, error)
    return f"{model} cannot be loaded: {why}. {cure}"


def _hub(model: str, error: Exception) -> tuple[str, str]:
    from huggingface_hub import constants, errors, get_token

    causes = list(_causes(error))

    def is_one(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_one(errors.GatedRepoError):
        locked = "the token that is set does not open it" if get_token() else "no token is set"
        return (
            f"it is gated, and {locked}",
            f"Ask for access at {constants.ENDPOINT}/{model}, then set a token of the same account"
            " in HF_TOKEN, or with `hf auth login`",
        )
    if is_one(errors.RevisionNotFoundError):
        return "the hub has the model, but not this revision", "Correct or remove `revision`"
    if is_one(errors.RepositoryNotFoundError, errors.HFValidationError):
        return (
            f"{constants.ENDPOINT} has no model of this name, or it is private",
            "Check the spelling (owner/name); for a private one set a token in HF_TOKEN; a folder"
            " is given by its path, as in ./model",
        )
    if (down := hub_unreachable()) is not None:
        return (
            f"it is not in the hub's cache on this machine, and {down}",
            "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or download the model elsewhere and"
            " give its folder",
        )
    return _files(error)


def _files(error: Exception) -> tuple[str, str]:
    said = _first_line(error)
    if "custom code" in said or "trust_remote_code" in said:
        return (
            "it brings code of its own, which is never run",
            "Choose a model whose architecture `transformers` itself has",
        )
    if "does not recognize this architecture" in said:
        return (
            "the installed `transformers` does not know its architecture (model_type in"
            " config.json)",
            "Choose another model, or check config.json",
        )
    if "tokenizer" in said:
        return (
            f"it has no tokenizer that can be read ({said})",
            "Put one beside config.json with `tokenizer.save_pretrained`, or copy tokenizer.json"
            " and tokenizer_config.json there",
        )
    return said, "Look at its config.json and tokenizer.json, or download the folder again"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(" .:")


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
        quantized = arguments(DTYPES[config.dtype], quantized_on)
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
