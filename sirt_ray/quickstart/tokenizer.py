"""Tokenizer of the tiny models: byte-level BPE, trained on the curriculum's documents.

Every synthetic word with its leading space is one token, digits are single tokens, `A)` and ` (A)`
are one token each; any other text is split into smaller pieces, at worst bytes, and decodes to
exactly the same text.
"""

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sirt_ray.quickstart.curriculum import DOCUMENTS

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2

_PIECES = r"[0-9]| ?\(?[A-Z]\)| ?[A-Za-z']+| ?[^\sA-Za-z0-9]|\s"
"""Regular expression of the pieces that merges never cross."""

_DOCUMENTS_PER_KIND = 500
_MAX_TOKENS = 8192
"""More than the corpus has pieces, so training ends when every piece is one token."""


def build(seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same seed gives the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(f"tokenizer/{seed}")
    pieces = {
        piece
        for document in DOCUMENTS.values()
        for _ in range(_DOCUMENTS_PER_KIND)
        for piece, _ in split.pre_tokenize_str("".join(document(rng)))
    }
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_TOKENS,
        min_frequency=1,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(pieces), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, BOS_ID)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
