"""A student small enough to train in a test (random weights, one token per byte), and its data."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sirt_ray.artifacts import parquet
from sirt_ray.core.encoding import TokenSequence, encode_demonstration, encode_prompt
from sirt_ray.training.data import held_out_questions
from sirt_ray.types import Completion, Demonstration, Graded, PreferencePair, PromptKind, Question

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_tokenizer(pad: str = PAD) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes: ids 0, 1, 2 are padding, BOS and EOS; BOS is before every
    text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([PAD, BOS, EOS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=BOS, eos_token=EOS
    )


def chat_tokenizer(template: str = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Return the byte tokenizer with a chat template; the default template has BOS, too."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def save_student(folder: Path, seed: int = 0, tied: bool = False, **config: Any) -> Path:
    """Save a Llama of two layers with its tokenizer as a Hugging Face folder."""
    tokenizer = byte_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": tied,
    }
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**settings | config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_talker(folder: Path, seed: int, tied: bool = False) -> Path:
    """Save a student whose weights are large enough for its greedy tokens to differ by position, as
    those of a trained model do."""
    return save_student(folder, seed, tied, initializer_range=0.15, num_key_value_heads=1)


def question(number: int) -> Question:
    text = f"What is {number} plus {number}" + ", exactly" * (number % 4) + "?"
    return Question(f"sums/train/{number}", "sums", text, (), str(2 * number))


def answer(number: int, text: str, kind: PromptKind = "cot") -> Graded:
    """Return the finished answer `text` to question `number`."""
    tokenizer = byte_tokenizer()
    prompt, prompt_ids = encode_prompt(question(number), kind, tokenizer)
    completion = Completion(
        question_id=question(number).id,
        benchmark="sums",
        prompt_kind=kind,
        sample_index=0,
        prompt=prompt,
        text=text,
        prompt_ids=prompt_ids,
        completion_ids=(*tokenizer.encode(text, add_special_tokens=False), 2),
        stop_reason="stop",
        model_version="test",
        seed=0,
    )
    return Graded(completion, "right", str(2 * number), str(2 * number))


def demonstration(number: int) -> Demonstration:
    text = f" {number} and {number} make {2 * number}. The answer is {2 * number}."
    return Demonstration(question(number), answer(number, text))


def pair(number: int) -> PreferencePair:
    chosen = answer(number, f" {number} + {number} = {2 * number}. The answer is {2 * number}.")
    rejected = answer(number, f" {2 * number}", "plain")
    completion = chosen.completion
    return PreferencePair(
        completion.question_id,
        "sums",
        "dpo_cot",
        completion.prompt,
        completion.prompt_ids,
        chosen,
        rejected,
    )


def write_demonstrations(folder: Path, numbers: Iterable[int]) -> Path:
    rows = [parquet.to_row(demonstration(number)) for number in numbers]
    parquet.write(folder / "demonstrations.parquet", rows, parquet.DEMONSTRATION)
    return folder


def write_pairs(folder: Path, numbers: Iterable[int]) -> Path:
    rows = [parquet.to_row(pair(number)) for number in numbers]
    parquet.write(folder / "pairs.parquet", rows, parquet.PAIR)
    return folder


def validation_loss(student: Path, numbers: Iterable[int], fraction: float, seed: int) -> float:
    """Return the mean NLL of the held-out demonstrations' tokens under an exported student,
    computed without the trainer."""
    held_out = held_out_questions((question(number).id for number in numbers), fraction, seed)
    model = LlamaForCausalLM.from_pretrained(student)
    total, tokens = 0.0, 0
    for number in numbers:
        if question(number).id in held_out:
            sequence = encode_demonstration(demonstration(number), "cot", byte_tokenizer())
            ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
            labels = torch.tensor([[-100] * len(sequence.prompt_ids) + [*sequence.completion_ids]])
            with torch.no_grad():
                mean = model(input_ids=ids, labels=labels).loss
            total += mean.item() * len(sequence.completion_ids)
            tokens += len(sequence.completion_ids)
    return total / tokens


def completion_logps(model: Any, sequences: Iterable[TokenSequence]) -> torch.Tensor:
    """Return log pi(completion | prompt), computed sequence by sequence."""
    logps: list[torch.Tensor] = []
    for sequence in sequences:
        ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
        token_logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        of_targets = token_logps.gather(-1, ids[0, 1:, None])[:, 0]
        logps.append(of_targets[len(sequence.prompt_ids) - 1 :].sum())
    return torch.stack(logps)
