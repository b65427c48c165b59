"""Whether a model can be used as a job asks, judged from its files before anything is started.

`sirt run`, `train`, `serve`, `evaluate` and `export` all judge by `judge`. The weights are loaded
on torch's meta device: their names and shapes are compared with the architecture's and no value is
read, so that it takes a fraction of a second for a model of any size.
"""

import json
import logging
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from sirt_ray.config.training import TrainingConfig
from sirt_ray.core.encoding import Tokenizer, check_prompts, end_of_turn_warning
from sirt_ray.errors import ModelError
from sirt_ray.logs import log_event
from sirt_ray.training.model_errors import loading
from sirt_ray.training.tasks import Source

Use = Literal["served", "prompted", "trained"]
"""`served`: with any prompt. `prompted`: with the project's prompts. `trained`: also on completions
of them."""

_ADAPTER = "adapter_config.json"
_INDEX = "model.safetensors.index.json"
_LFS_POINTER = b"version https://git-lfs"
_SHOWN = 3
"""Names that a message lists."""
_OTHER_MEDIA = ("pad_token", "image_token", "audio_token", "video_token")
"""Tokens that no text of a training holds: models of text keep them without a row for each."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is wrong with a model, and what is only worth knowing."""

    problems: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])
    unloadable: bool = False
    """Whether its configuration or its tokenizer could not be loaded."""


def judge(
    source: Source,
    use: Use,
    trainings: Mapping[str, TrainingConfig] | None = None,
    local_files_only: bool = False,
) -> Judgement:
    """Judge a model: all of it in a folder, the configuration and the tokenizer of one on the hub.

    `trainings`: the trainings of the model, by the names of their sections.
    """
    folder = Path(source.location)
    if folder.is_dir() and (other := _no_whole_model(folder)):
        return Judgement([other], unloadable=True)
    problems: list[str] = []
    config, tokenizer = _loaded(source, local_files_only, problems)
    if config is None or tokenizer is None:
        problems += _file_problems(folder) if folder.is_dir() else []
        return Judgement(list(dict.fromkeys(problems)), unloadable=True)
    found = Judgement(problems)
    problems += [f"{source.name} {what}" for what in architecture_problems(config, use)]
    fits = not problems
    if folder.is_dir() and _has_weights(source):
        broken = _file_problems(folder)
        problems += broken
        if fits and not broken:
            _judge_weights(folder, config, use, found)
    _judge_tokenizer(source.name, tokenizer, config, use, found)
    for section, training in (trainings or {}).items() if fits else ():
        _judge_training(section, training, config, source, found)
    return found


def require(setting: str, found: Judgement) -> None:
    """Log the warnings. Raises ModelError with all problems; `setting` is where the user named the
    model."""
    for warning in found.warnings:
        log_event(logging.WARNING, f"{setting}: {warning}")
    if found.problems:
        raise ModelError("\n".join(f"{setting}: {problem}" for problem in found.problems))


def architecture_problems(config: Any, use: Use) -> list[str]:
    """Return why a model of this configuration cannot be used so; each continues its name."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind, has_parts = config.model_type, config.get_text_config() is not config
    found: list[str] = []
    if getattr(config, "is_encoder_decoder", False):
        found.append(
            f"is an encoder-decoder model ({kind}), which does not continue a prompt. Choose a"
            " causal language model (decoder only)"
        )
    elif has_parts and use == "trained":
        found.append(
            f"is not a model of text alone ({kind} has other parts, as for images): those would be"
            " neither trained nor kept. Choose a causal language model of text"
        )
    elif not has_parts and (
        type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or _sees_what_follows(config)
    ):
        found.append(
            f"does not write text ({kind} is an encoder or another kind of model: its tokens see"
            " what follows them). Choose a causal language model"
        )
    quantized: Any = getattr(config, "quantization_config", None)
    if use == "trained" and quantized:
        settings = quantized if isinstance(quantized, Mapping) else quantized.to_dict()
        found.append(
            f"is quantised ({settings.get('quant_method', 'of an unknown kind')}), and quantised"
            " weights cannot be updated. Give the unquantised model; `lora.quantize: nf4` trains"
            " adapters on it in 4 bits (QLoRA)"
        )
    return found


def structure(config: Any) -> Any:
    """Return the model of a configuration on the meta device: modules and shapes, no values."""
    import torch
    from transformers import AutoModelForCausalLM

    with _silent(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def loading_problems(info: Mapping[str, Any], use: Use = "trained") -> list[str]:
    """Return what `output_loading_info` reports of weights that are not the architecture's."""
    found: list[str] = []
    if missing := sorted(info["missing_keys"]):
        found.append(f"lacks weights of its architecture: {_listed(missing)}")
    if reshaped := sorted(info["mismatched_keys"]):
        shapes = [
            f"{name} is {_shape(stored)} and should be {_shape(expected)}"
            for name, stored, expected in reshaped
        ]
        found.append(f"has weights of other shapes than its config.json says: {_listed(shapes)}")
    if (unexpected := sorted(info["unexpected_keys"])) and use == "trained":
        found.append(
            f"has weights that its architecture does not use: {_listed(unexpected)}. It would be"
            " trained without them"
        )
    return [f"{what}. Download it again, or correct its config.json" for what in found]


def learned_positions(model: Any) -> int | None:
    """Return the number of positions of a model that looks them up in a table, such as GPT-2's;
    None for all others (RoPE, ALiBi, recurrence)."""
    config = model.config.get_text_config()
    if config.model_type == "mpt":  # ALiBi, but in a table.
        return config.max_seq_len
    limit = getattr(config, "max_position_embeddings", None)
    if not limit or getattr(config, "rope_parameters", None):
        return None
    tables = [*model.named_parameters(), *model.named_buffers()]
    is_table = any(
        ("pos" in name or "wpe" in name)
        and value.ndim == 2
        and limit <= value.shape[0] <= limit + 2
        for name, value in tables
    )
    return limit if is_table else None


def _no_whole_model(folder: Path) -> str | None:
    """Return what a folder holds instead of a model; None if it holds one."""
    if (folder / _ADAPTER).is_file():
        return (
            f"{folder} is an adapter {_of_base(folder / _ADAPTER)}, not a whole model. Merge it"
            " into its base (PEFT's `merge_and_unload`, then `save_pretrained` of model and"
            " tokenizer), or `sirt export --merge` if a run trained it, and give that folder"
        )
    files = sorted(folder.glob("*.gguf"))
    if not files or next(folder.glob("*.safetensors"), None) is not None:
        return None
    return (
        f"{folder} holds a GGUF file ({files[0].name}), the format of llama.cpp. Give the folder of"
        " the model that it was converted from (config.json, *.safetensors, tokenizer.json)"
    )


def _of_base(file: Path) -> str:
    try:
        base = json.loads(file.read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    return f"of {base}" if base else "whose base is not named"


def _loaded(
    source: Source, local_files_only: bool, problems: list[str]
) -> tuple[Any, Tokenizer | None]:
    """Return the configuration and the tokenizer; None for one that cannot be loaded."""
    from transformers import AutoConfig, AutoTokenizer

    where, found = {"revision": source.revision, "local_files_only": local_files_only}, []
    for kind in (AutoConfig, AutoTokenizer):
        try:
            with loading(source.name), _silent():
                found.append(
                    kind.from_pretrained(source.location, trust_remote_code=False, **where)
                )
        except ModelError as error:
            problems.append(str(error))
            found.append(None)
            if not Path(source.location).is_dir():
                return None, None  # The hub would give the same reason again.
    return found[0], found[1]


def _has_weights(source: Source) -> bool:
    """Return whether the folder has the weights as well: what was fetched from storage for its
    tokenizer has not."""
    return source.folder is None or any(Path(source.folder).glob("*.safetensors"))


def _file_problems(folder: Path) -> list[str]:
    """Return what is wrong with the files of the weights."""
    files = sorted(folder.glob("*.safetensors"))
    absent = absent_shards(folder, {file.name for file in files})
    if not files and not absent:
        return [
            f"there are no weights (*.safetensors) in {folder}. Download them, or convert older"
            " ones with `save_pretrained`"
        ]
    return absent + [problem for file in files if (problem := _header_problem(file))]


def absent_shards(folder: Path, there: Collection[str]) -> list[str]:
    """Return the problem of shards that the index of a folder names and that are not `there`."""
    index = folder / _INDEX
    if not index.is_file():
        return []
    try:
        named = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{index} cannot be read ({error!r}). Download the file again"]
    absent = sorted(named - set(there))
    if not absent:
        return []
    return [
        f"{len(absent)} of the {len(named)} files of weights that {index} names are missing:"
        f" {_listed(absent)}. Download them: the download was not finished"
    ]


def _header_problem(file: Path) -> str | None:
    """Return what is wrong with a file of weights, from its header and its size."""
    from safetensors import SafetensorError, safe_open

    try:
        with file.open("rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return (
                    f"{file} holds no complete weights: it is a Git LFS pointer. Fetch the real"
                    " file with `git lfs pull`"
                )
        with safe_open(file, framework="numpy"):
            return None
    except (OSError, SafetensorError) as error:
        return f"{file} holds no complete weights: {error}. Download the file again"


def _judge_weights(folder: Path, config: Any, use: Use, found: Judgement) -> None:
    """Compare the weights with the architecture. What only an engine loads is left to it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if getattr(config, "quantization_config", None) or (
        type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        return
    files = (*folder.glob("*.json"), *folder.glob("*.safetensors"))
    key = tuple((file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
    try:
        problems = loading_problems(_loading_info(folder, key), use)
    except ModelError as error:
        found.problems.append(str(error))
    else:
        found.problems.extend(f"{folder} {what}" for what in problems)


@lru_cache(maxsize=8)
def _loading_info(folder: Path, key: object) -> Mapping[str, Any]:
    """Load a folder's weights without their values. `key` identifies the files: a study judges its
    model once for all of its trials."""
    from transformers import AutoModelForCausalLM

    with loading(str(folder)), _silent():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return loaded[1]


def _judge_tokenizer(
    model: str, tokenizer: Tokenizer, config: Any, use: Use, found: Judgement
) -> None:
    if tokenizer.eos_token_id is None:
        found.problems.append(
            f"the tokenizer of {model} has no end-of-sequence token, so answers would never end."
            " Set `eos_token` in its tokenizer_config.json"
        )
        return
    # A model with parts for images may read the tokens of these by other means.
    rows: int | None = getattr(config, "vocab_size", None)
    if rows is not None and (beyond := tokens_beyond(tokenizer, rows)):
        found.problems.append(
            f"the tokenizer of {model} has tokens that the model has no embeddings for"
            f" ({rows} rows): {_listed(beyond)}. Enlarge the model"
            " (`model.resize_token_embeddings(len(tokenizer))`, then `save_pretrained`), or take"
            " them out of the tokenizer"
        )
    if use == "served":
        return
    try:
        check_prompts(tokenizer, trained=use == "trained")
    except ModelError as error:
        found.problems.append(f"{model} cannot be {use}: {error}")
        return
    if use == "trained" and (warning := end_of_turn_warning(tokenizer)):
        found.warnings.append(f"{model}: {warning}")


def tokens_beyond(tokenizer: Any, rows: int) -> list[str]:
    """Return the tokens whose ids are beyond the rows of the embeddings, as `token (id)`, except
    those that no text holds."""
    unused = {getattr(tokenizer, name, None) for name in _OTHER_MEDIA}
    above = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    return [f"{token} ({n})" for n, token in above if n >= rows and token not in unused]


def _judge_training(
    section: str, training: TrainingConfig, config: Any, source: Source, found: Judgement
) -> None:
    from sirt_ray.training.model import add_lora

    model = structure(config)
    if warning := length_warning(model, training.max_length):
        found.warnings.append(f"{section}.max_length is {training.max_length}, and {warning}")
    if training.lora is not None:
        for target in _without_a_layer(model, training.lora.target_modules):
            found.warnings.append(
                f"{section}.lora.target_modules: {source.name} has no layer {target!r}, so nothing"
                " of this name is trained"
            )
        try:
            add_lora(model, training.lora, source, seed=0)
        except ModelError as error:
            found.problems.append(f"{section}.{error}")


def length_warning(model: Any, max_length: int) -> str | None:
    """Return what happens to sequences longer than the model was made for; None if there can be
    none."""
    positions = learned_positions(model)
    if positions is not None:
        if max_length <= positions:
            return None
        return (
            f"the model has {positions} positions: a longer sequence is left out, and counted as"
            " `beyond_positions`"
        )
    config = model.config.get_text_config()
    rope: Any = getattr(config, "rope_parameters", None)
    trained = getattr(config, "max_position_embeddings", None) if rope else None
    if not trained or max_length <= trained:
        return None
    scaled = rope.get("rope_type") if isinstance(rope, Mapping) else None
    batch = (
        f". Its RoPE is {scaled!r}: beyond that a token's position depends on the longest sequence"
        " of its batch"
        if scaled in ("dynamic", "longrope")
        else ""
    )
    return (
        f"the model was made for {trained} tokens (max_position_embeddings, RoPE): a longer"
        f" sequence is trained at positions that it has never seen{batch}. Lower it to {trained}"
        " unless that is meant"
    )


def _without_a_layer(model: Any, targets: Iterable[str] | str) -> list[str]:
    """Return the targets that match no module, where others do (PEFT refuses it where none do)."""
    if isinstance(targets, str):
        return []
    names = [name for name, _ in model.named_modules()]
    absent = [
        target
        for target in targets
        if not any(name == target or name.endswith(f".{target}") for name in names)
    ]
    return absent if len(absent) < len(list(targets)) else []


def _sees_what_follows(config: Any) -> bool:
    """Return whether the tokens of the model attend to those after them: an encoder's. GPT-NeoX has
    the encoders' setting as well, and causal layers."""
    if getattr(config, "is_decoder", None) is not False:
        return False
    return not any(getattr(module, "is_causal", False) for module in structure(config).modules())


@contextmanager
def _silent() -> Generator[None]:
    """Keep `transformers` from printing progress and reports while the block runs."""
    from transformers.utils import logging as hf_logging

    level, had_bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if had_bar:
            hf_logging.enable_progress_bar()


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _shape(size: Iterable[int]) -> str:
    return "x".join(map(str, size))
