"""Stored demonstrations and pairs -> training examples, with a count of everything left out.

Every worker reads all of it and computes the same lists: a training set is small compared with the
model.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sirt_ray.artifacts import parquet
from sirt_ray.config.training import RefineConfig, TuneConfig
from sirt_ray.core.encoding import (
    Tokenizer,
    TokenSequence,
    TrainingExample,
    encode_demonstration,
    encode_pair,
)
from sirt_ray.errors import DataError, ModelError
from sirt_ray.types import Demonstration, PreferencePair

REFERENCE_COLUMNS: tuple[str, ...] = (
    "chosen_logp",
    "rejected_logp",
    "mismatched_chosen_logp",
    "mismatched_rejected_logp",
)
"""Columns of the stored log-probabilities, in the order of a pair's sequences; the last two for KTO
only."""

ReferenceLogps = tuple[float, ...]
"""The log-probability of each sequence of a pair, in nats."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The examples of a training, and what was left out of it."""

    train: list[TrainingExample]
    held_out: list[TrainingExample]
    """Examples of the validation loss; no question of `train` is in it."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of rows that are used for neither, by reason."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model can take in. Example: `Limits(1024, 50257)` is GPT-2."""

    positions: int | None = None
    """The longest sequence; None: any."""
    vocabulary: int | None = None
    """The number of token ids; None: not known."""

    def check(self, examples: Iterable[TrainingExample]) -> None:
        """Raise ModelError for token ids that the model has no embeddings for."""
        if self.vocabulary is None:
            return
        ids = {n for e in examples for s in e.sequences for n in (*s.prompt_ids, *s.completion_ids)}
        if beyond := sorted(n for n in ids if n >= self.vocabulary):
            raise ModelError(
                f"the examples hold the token ids {', '.join(map(str, beyond[:5]))}, and the model"
                f" has embeddings for the first {self.vocabulary} only: its tokenizer has more"
                " tokens than it. Enlarge the model (`model.resize_token_embeddings`), or take"
                " these tokens out of the tokenizer"
            )


def tuning_data(
    demonstrations: Path,
    config: TuneConfig,
    tokenizer: Tokenizer,
    seed: int,
    limits: Limits = Limits(),
) -> TrainingData:
    """Return demonstrations as sequences. Raises DataError if none is left to train on, ModelError
    if the model cannot take one in."""
    left_out: Counter[str] = Counter()
    examples: list[TrainingExample] = []
    for row in parquet.rows(demonstrations):
        if row["question"] is None:  # The user's own text: see external_data.py.
            sequence = TokenSequence(tuple(row["prompt_ids"]), tuple(row["completion_ids"]))
            examples.append(TrainingExample(row["question_id"], (sequence,)))
            continue
        demonstration = parquet.from_row(Demonstration, row)
        try:
            sequence = encode_demonstration(demonstration, config.prompt, tokenizer)
        except DataError:  # One such text does not fail the training; it is counted.
            left_out["end_of_sequence_inside"] += 1
            continue
        examples.append(TrainingExample(demonstration.question.id, (sequence,)))
    limits.check(examples)
    examples = _short_enough(examples, config.max_length, limits.positions, left_out)
    return _split(examples, config.validation_fraction, seed, left_out, "demonstration")


def stored_reference(reference: Path, key: str) -> list[ReferenceLogps | None] | None:
    """Return the stored log-probabilities of every pair, None for a pair that was too long.

    Return None if they are stale: computed for other weights or other pairs than those of `key`.
    """
    if parquet.counts(parquet.files(reference)[0]).get("key") != key:
        return None
    return [
        None if row["chosen_logp"] is None else tuple(row[c] for c in REFERENCE_COLUMNS if c in row)
        for row in parquet.rows(reference)
    ]


def refinement_data(
    pairs: Sequence[TrainingExample],
    reference: Sequence[ReferenceLogps | None],
    config: RefineConfig,
    seed: int,
    limits: Limits = Limits(),
) -> TrainingData:
    """Return pairs, or what `config.loss` makes of them, with their reference log-probabilities.

    Raises DataError if none is left, or if a loss that compares has pairs without a rejected
    completion.
    """
    if config.loss != "rft" and any(len(pair.sequences) == 1 for pair in pairs):
        raise DataError(
            f"refine.loss '{config.loss}' compares completions, but there are pairs without a"
            " rejected one (pairs.rule 'right' makes such). Set refine.loss to 'rft', or train on"
            " pairs of another rule"
        )
    left_out: Counter[str] = Counter()
    usable = [
        TrainingExample(pair.question_id, pair.sequences, logps or ())
        for pair, logps in zip(pairs, reference, strict=True)
    ]
    if config.loss == "rft":
        usable = _chosen_once(usable, left_out)
    usable = _short_enough(usable, config.max_length, limits.positions, left_out)
    if config.loss == "kto":
        usable = _unpaired(usable, left_out)
    return _split(usable, config.validation_fraction, seed, left_out, "pair")


def pair_examples(pairs: Path, mismatched: bool = False) -> list[TrainingExample]:
    """Return all stored pairs, in order, without reference log-probabilities.

    With `mismatched`, each has two more sequences: the chosen and the rejected completion of a pair
    of the next question (for the last question, of the first) after the pair's prompt. Raises
    DataError then if there is only one question.
    """
    examples = [encode_pair(parquet.from_row(PreferencePair, row)) for row in parquet.rows(pairs)]
    return _with_mismatched(examples) if mismatched else examples


def ids_key(examples: Iterable[TrainingExample]) -> str:
    """Return the content hash of token sequences."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr([(s.prompt_ids, s.completion_ids) for s in example.sequences]).encode())
    return digest.hexdigest()


def held_out_questions(question_ids: Iterable[str], fraction: float, seed: int) -> frozenset[str]:
    """Return the questions of the validation loss: whole questions, chosen by a hash of their ids.

    There is at least one if `fraction` is above 0 and there are two or more questions; never all.
    """
    distinct = set(question_ids)
    if fraction == 0 or len(distinct) < 2:
        return frozenset()
    number = min(max(1, round(fraction * len(distinct))), len(distinct) - 1)

    def rank(question_id: str) -> str:
        return hashlib.sha256(f"held out/{seed}/{question_id}".encode()).hexdigest()

    return frozenset(sorted(distinct, key=rank)[:number])


def _short_enough(
    examples: Iterable[TrainingExample],
    max_length: int,
    positions: int | None,
    left_out: Counter[str],
) -> list[TrainingExample]:
    """Return the examples of at most `max_length` tokens that the model has positions for, and
    count the others."""
    kept: list[TrainingExample] = []
    for example in examples:
        if example.longest > max_length:
            left_out["too_long"] += 1
        elif positions is not None and example.longest > positions:
            left_out["beyond_positions"] += 1
        else:
            kept.append(example)
    return kept


def _chosen_once(pairs: Iterable[TrainingExample], left_out: Counter[str]) -> list[TrainingExample]:
    """Return each distinct chosen completion of a question, to be imitated."""
    chosen: dict[TokenSequence, TrainingExample] = {}
    for pair in pairs:
        sequence = pair.sequences[0]
        if sequence in chosen:
            left_out["chosen_again"] += 1
        else:
            chosen[sequence] = TrainingExample(pair.question_id, (sequence,))
    return list(chosen.values())


def _with_mismatched(pairs: Sequence[TrainingExample]) -> list[TrainingExample]:
    """Return the pairs with the completions of the next question after their prompts."""
    of_question: dict[str, list[TrainingExample]] = {}
    for pair in pairs:
        of_question.setdefault(pair.question_id, []).append(pair)
    if len(of_question) == 1:
        raise DataError(
            "refine.loss 'kto' needs completions that were written to another question, and all"
            " pairs are of one question. Refine on more of them, or choose another loss"
        )
    questions = list(of_question)
    following = zip(questions, [*questions[1:], *questions[:1]], strict=True)
    others = {question: itertools.cycle(of_question[after]) for question, after in following}

    def widened(pair: TrainingExample) -> TrainingExample:
        prompt_ids = pair.sequences[0].prompt_ids
        other = next(others[pair.question_id])
        mismatched = (TokenSequence(prompt_ids, s.completion_ids) for s in other.sequences)
        return TrainingExample(pair.question_id, (*pair.sequences, *mismatched))

    return [widened(pair) for pair in pairs]


def _unpaired(pairs: Iterable[TrainingExample], left_out: Counter[str]) -> list[TrainingExample]:
    """Return each distinct chosen completion of a question as desirable, each distinct rejected one
    as undesirable, with the mismatched completion of its side."""
    found: dict[tuple[TokenSequence, bool], TrainingExample] = {}
    for pair in pairs:
        for side, (desirable, again) in enumerate(
            ((True, "chosen_again"), (False, "rejected_again"))
        ):
            example, mismatched = (
                TrainingExample(
                    pair.question_id,
                    pair.sequences[index : index + 1],
                    pair.reference_logps[index : index + 1],
                )
                for index in (side, side + 2)
            )
            key = example.sequences[0], desirable
            if key in found:
                left_out[again] += 1
            else:
                found[key] = replace(example, desirable=desirable, mismatched=mismatched)
    return list(found.values())


def _split(
    examples: list[TrainingExample], fraction: float, seed: int, left_out: Counter[str], what: str
) -> TrainingData:
    """Hold out whole questions for validation. Raises DataError if there are no examples."""
    if not examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise DataError(
            f"No {what} is left to train on ({reasons or 'there were none'})."
            " Raise max_length (a model cannot go beyond its positions), or look at the counts of"
            " the stage before"
        )
    validation = held_out_questions((example.question_id for example in examples), fraction, seed)
    return TrainingData(
        train=[example for example in examples if example.question_id not in validation],
        held_out=[example for example in examples if example.question_id in validation],
        left_out=dict(left_out),
    )


def describe(data: TrainingData) -> dict[str, Any]:
    """Return the counts that become part of the stage's record."""
    return {
        "examples": len(data.train),
        "held_out": len(data.held_out),
        "left_out": data.left_out,
        "tokens_per_epoch": sum(example.num_tokens for example in data.train),
    }
