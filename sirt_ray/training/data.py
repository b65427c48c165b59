"""Stored demonstrations and pairs -> training examples, with a count of everything left out.

Every worker reads all of it and computes the same lists: a training set is small beside the model.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sirt_ray import tables
from sirt_ray.config import RefineConfig, TuneConfig
from sirt_ray.core.encoding import Tokenizer, TrainingExample, encode_demonstration, encode_pair
from sirt_ray.errors import ArtifactError, DataError
from sirt_ray.training.batching import Shape


@dataclass(frozen=True, slots=True)
class TrainingData:
    train: list[TrainingExample]
    held_out: list[TrainingExample]
    """For the validation loss; no question of `train` is in it."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows that are used for neither, by reason."""


def shapes(examples: Sequence[TrainingExample]) -> list[Shape]:
    return [
        Shape(len(example.sequences), max(len(sequence) for sequence in example.sequences))
        for example in examples
    ]


def tuning_data(
    demonstrations: Path, config: TuneConfig, tokenizer: Tokenizer, seed: int
) -> TrainingData:
    """Demonstrations as sequences. Raises DataError where none is left to train on."""
    left_out: Counter[str] = Counter()
    examples: list[TrainingExample] = []
    for row in tables.rows(demonstrations):
        demonstration = tables.to_demonstration(row)
        try:
            sequence = encode_demonstration(demonstration, config.prompt, tokenizer)
        except DataError:  # One teacher's text is not worth the training; it is counted.
            left_out["end_of_sequence_inside"] += 1
            continue
        examples.append(TrainingExample(demonstration.question.id, (sequence,)))
    examples = _short_enough(examples, config.max_length, left_out)
    return _split(examples, config.validation_fraction, seed, left_out, "demonstration")


def refinement_data(
    pairs: Path,
    reference: Path,
    config: RefineConfig,
    seed: int,
    key: Callable[[Sequence[TrainingExample]], str],
) -> TrainingData:
    """Pairs with their reference log-probabilities.

    `key` gives the content of the student's weights and of the pairs; raises ArtifactError where
    the reference was computed for other ones.
    """
    rows = tables.read(reference)
    examples = pair_examples(pairs)
    computed_for = tables.counts(_single_file(reference)).get("key")
    if len(rows) != len(examples) or computed_for != key(examples):
        raise ArtifactError(
            f"The reference log-probabilities in {reference} were computed for other weights or"
            f" other pairs than those given ({pairs}), so preferences would be measured against"
            " the wrong model. Delete the reference's folder to have them computed again"
        )
    left_out: Counter[str] = Counter()
    usable = [
        TrainingExample(
            example.question_id, example.sequences, (row["chosen_logp"], row["rejected_logp"])
        )
        for example, row in zip(examples, rows, strict=True)
    ]
    usable = _short_enough(usable, config.max_length, left_out)
    return _split(usable, config.validation_fraction, seed, left_out, "pair")


def pair_examples(pairs: Path) -> list[TrainingExample]:
    """All stored pairs, in order, without reference log-probabilities."""
    return [encode_pair(tables.to_pair(row)) for row in tables.rows(pairs)]


def ids_key(examples: Iterable[TrainingExample]) -> str:
    """The content of token sequences."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr([(s.prompt_ids, s.completion_ids) for s in example.sequences]).encode())
    return digest.hexdigest()


def held_out_questions(question_ids: Iterable[str], fraction: float, seed: int) -> frozenset[str]:
    """The questions of the validation loss: whole questions, chosen by a hash of their ids.

    At least one where `fraction` is above 0 and there are two or more; never all of them.
    """
    distinct = set(question_ids)
    if fraction == 0 or len(distinct) < 2:
        return frozenset()
    number = min(max(1, round(fraction * len(distinct))), len(distinct) - 1)

    def rank(question_id: str) -> str:
        return hashlib.sha256(f"held out/{seed}/{question_id}".encode()).hexdigest()

    return frozenset(sorted(distinct, key=rank)[:number])


def _short_enough(
    examples: Iterable[TrainingExample], max_length: int, left_out: Counter[str]
) -> list[TrainingExample]:
    kept: list[TrainingExample] = []
    for example in examples:
        if max(len(sequence) for sequence in example.sequences) > max_length:
            left_out["too_long"] += 1
        else:
            kept.append(example)
    return kept


def _split(
    examples: list[TrainingExample], fraction: float, seed: int, left_out: Counter[str], what: str
) -> TrainingData:
    if not examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise DataError(
            f"No {what} is left to train on ({reasons or 'there were none'})."
            " Raise max_length, or look at the counts of the stage before"
        )
    apart = held_out_questions((example.question_id for example in examples), fraction, seed)
    return TrainingData(
        train=[example for example in examples if example.question_id not in apart],
        held_out=[example for example in examples if example.question_id in apart],
        left_out=dict(left_out),
    )


def _single_file(path: Path) -> Path:
    return tables.files(path)[0]


def describe(data: TrainingData) -> dict[str, Any]:
    """The counts that become part of the stage's record."""
    return {
        "examples": len(data.train),
        "held_out": len(data.held_out),
        "left_out": data.left_out,
        "tokens_per_epoch": sum(example.num_tokens for example in data.train),
    }
