"""Train the quickstart's models from scratch and from seeds: tokenizer, student base, teacher.

    python -m sirt_ray.quickstart.pretrain --out DIR

writes DIR/student and DIR/teacher. The student is trained in the phases of `curriculum.STUDENT`;
the teacher continues from the student in those of `curriculum.TEACHER`. Training uses one thread,
so that the same seed gives the same weights on the same machine.
"""

import argparse
import logging
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sirt_ray.quickstart.curriculum import DOCUMENTS, STUDENT, TEACHER, Phase
from sirt_ray.quickstart.tokenizer import BOS_ID, EOS_ID, PAD_ID, build

_LOG = logging.getLogger(__name__)

IGNORED = -100
"""Label of a position without loss."""

_DOCUMENTS_AT_ONCE = 4096
_WARM_UP_SHARE = 0.05
_FINAL_SHARE = 0.05
"""Learning rate at the end of a phase, as a share of the peak."""
_STEPS_PER_REPORT = 100


@dataclass(frozen=True, slots=True)
class Encoded:
    """One document as token ids, BOS first and EOS last."""

    ids: list[int]
    num_context: int
    """Number of leading tokens without loss."""


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return a randomly initialised Llama of about 0.4M parameters that vLLM can serve."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.08,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[tuple[str, str]]) -> list[Encoded]:
    """Tokenise context and target separately, as an engine sees a prompt and its completion."""
    contexts = tokenizer([context for context, _ in documents])["input_ids"]
    targets = tokenizer([target for _, target in documents], add_special_tokens=False)["input_ids"]
    return [
        Encoded([*context, *target, EOS_ID], len(context))
        for context, target in zip(contexts, targets, strict=True)
    ]


def cut_batches(
    documents: list[Encoded], batch_tokens: int, rng: random.Random
) -> list[list[Encoded]]:
    """Return shuffled batches of documents with similar length, each of at most `batch_tokens` with
    padding."""
    batches: list[list[Encoded]] = []
    batch: list[Encoded] = []
    for document in sorted(documents, key=lambda document: len(document.ids)):
        if batch and (len(batch) + 1) * len(document.ids) > batch_tokens:
            batches.append(batch)
            batch = []
        batch.append(document)
    batches.append(batch)
    rng.shuffle(batches)
    return batches


def batches_of(
    phase: Phase, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> Iterator[list[Encoded]]:
    """Yield batches of new documents endlessly, in the phase's mix."""
    names, shares = zip(*phase.mix, strict=True)
    while True:
        drawn = rng.choices(names, weights=shares, k=_DOCUMENTS_AT_ONCE)
        documents = [DOCUMENTS[name](rng) for name in drawn]
        yield from cut_batches(encode(tokenizer, documents), phase.batch_tokens, rng)


def collate(batch: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and labels [documents, longest], padded on the right."""
    longest = max(len(document.ids) for document in batch)
    ids = torch.full((len(batch), longest), PAD_ID)
    labels = torch.full((len(batch), longest), IGNORED)
    for row, document in enumerate(batch):
        length = len(document.ids)
        ids[row, :length] = torch.tensor(document.ids)
        labels[row, document.num_context : length] = ids[row, document.num_context : length]
    return ids, labels


def learning_rate(step: int, phase: Phase) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine decay."""
    warm_up = max(1, round(phase.num_steps * _WARM_UP_SHARE))
    if step < warm_up:
        return phase.peak_learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, phase.num_steps - warm_up)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return phase.peak_learning_rate * (_FINAL_SHARE + (1 - _FINAL_SHARE) * cosine)


def train(
    model: LlamaForCausalLM, phase: Phase, tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    """Train the model in place for one phase."""
    rng = random.Random(f"{phase.name}/{seed}")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    model.train()
    started, num_tokens, loss_sum = time.monotonic(), 0, 0.0
    batches = batches_of(phase, tokenizer, rng)
    for step in range(phase.num_steps):
        ids, labels = collate(next(batches))
        optimizer.param_groups[0]["lr"] = learning_rate(step, phase)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += ids.numel()
        loss_sum += loss.item()
        if (step + 1) % _STEPS_PER_REPORT == 0:
            seconds = time.monotonic() - started
            _LOG.info(
                "%s step %d/%d: loss %.4f, %.0f tokens/s, %.0f s",
                *(phase.name, step + 1, phase.num_steps),
                *(loss_sum / _STEPS_PER_REPORT, num_tokens / seconds, seconds),
            )
            loss_sum = 0.0
    model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write everything that transformers and vLLM need to load the model, in float32."""
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def scaled(phases: tuple[Phase, ...], steps_scale: float) -> tuple[Phase, ...]:
    """Return the phases with their steps multiplied by `steps_scale`, at least one each."""
    return tuple(
        replace(phase, num_steps=max(1, round(phase.num_steps * steps_scale))) for phase in phases
    )


def make(out: Path, seed: int, steps_scale: float) -> None:
    """Train and save the student base, then the teacher."""
    torch.set_num_threads(1)
    tokenizer = build()
    model = new_model(tokenizer, seed)
    for name, phases in (("student", STUDENT), ("teacher", TEACHER)):
        for phase in scaled(phases, steps_scale):
            train(model, phase, tokenizer, seed)
        save(model, tokenizer, out / name)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; `argv` None means `sys.argv`."""
    parser = argparse.ArgumentParser(description="Train the quickstart's student and teacher.")
    parser.add_argument("--out", type=Path, required=True, help="folder for student/ and teacher/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps-scale", type=float, default=1.0, help="multiplies the steps of every phase"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make(arguments.out, arguments.seed, arguments.steps_scale)


if __name__ == "__main__":
    main()
