"""What is trained and sampled opens and ends once, whoever adds the special tokens, and begins as
it is asked: tokenizers and templates with which it would not are refused."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sirt_ray.core import prompts
from sirt_ray.core.encoding import (
    check_prompts,
    encode_as_written,
    encode_demonstration,
    encode_prompt,
)
from sirt_ray.errors import ModelError
from sirt_ray.types import Demonstration, PromptKind
from tests.helpers import tiny

BOS, EOS = 1, 2
CHAT = tiny.CHAT_TEMPLATE
WITHOUT_BOS = CHAT.replace("{{ bos_token }}", "")
THINKING = CHAT.replace("<|assistant|>\n{% endif", "<|assistant|>\n<think>\n{% endif")
LAST_ONLY = CHAT.replace("in messages", "in messages[-1:]")
STRIPPED = CHAT.replace(
    "{{ m['content'] }}",
    "{{ m['content'] if loop.last else m['content'] | replace('Question: ', '') }}",
)


def tokenizer(adds: str, template: str | None) -> Any:
    """`adds`: what the tokenizer puts around every text by itself."""
    made = tiny.byte_tokenizer()
    around = processors.TemplateProcessing(
        single=adds, special_tokens=[(tiny.BOS, BOS), (tiny.EOS, EOS)]
    )
    made.backend_tokenizer.post_processor = around if adds != "$A" else None
    made.chat_template = template
    return made


def merging(pair: tuple[str, str], template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer whose only token above bytes is `pair`, across words too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [tiny.PAD, tiny.BOS, tiny.EOS, *alphabet, "".join(pair)]
    made = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[pair]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=tiny.BOS, eos_token=tiny.EOS, chat_template=template
    )


def space_first() -> PreTrainedTokenizerFast:
    """A tokenizer of the SentencePiece kind: a space before whatever comes first."""
    pieces = [tiny.PAD, tiny.BOS, tiny.EOS, "<unk>", "▁"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    model = models.BPE(
        vocab={p: i for i, p in enumerate(pieces)},
        merges=[],
        byte_fallback=True,
        unk_token="<unk>",
    )
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=tiny.BOS, eos_token=tiny.EOS, unk_token="<unk>"
    )


def trained(text: str, kind: PromptKind, with_tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    answered = tiny.answer(3, text)
    sequence = encode_demonstration(Demonstration(tiny.question(3), answered), kind, with_tokenizer)
    return sequence.prompt_ids, sequence.completion_ids


@pytest.mark.parametrize("kind", ["cot", "plain"])
@pytest.mark.parametrize(
    ("adds", "template", "opens"),
    [
        ("<s> $A", None, True),
        ("<s> $A </s>", None, True),
        ("$A", None, False),
        ("$A </s>", None, False),
        ("$A", CHAT, True),
        ("<s> $A", CHAT, True),
        ("<s> $A </s>", CHAT, True),
        ("$A", WITHOUT_BOS, False),
        ("<s> $A", WITHOUT_BOS, False),
    ],
)
def test_bos_and_eos_stand_once(
    adds: str, template: str | None, opens: bool, kind: PromptKind
) -> None:
    made = tokenizer(adds, template)
    check_prompts(made, trained=True)
    _, sampled = encode_prompt(tiny.question(3), kind, made)
    prompt_ids, completion_ids = trained(" six", kind, made)
    assert prompt_ids == sampled
    assert [at for at, token in enumerate(prompt_ids) if token == BOS] == ([0] if opens else [])
    assert BOS not in completion_ids
    assert [at for at, token in enumerate(completion_ids) if token == EOS] == [
        len(completion_ids) - 1
    ]
    # The user's turn of the template ends with EOS; a plain prompt has none.
    assert prompt_ids.count(EOS) == (0 if template is None else 1)


def test_a_template_that_doubles_bos_is_refused() -> None:
    with pytest.raises(ModelError, match="two BOS"):
        check_prompts(tokenizer("<s> $A", "<s>" + CHAT), trained=False)


@pytest.mark.parametrize("template", [THINKING, LAST_ONLY, STRIPPED])
def test_a_template_that_changes_an_answered_prompt_is_refused_for_training(template: str) -> None:
    made = tiny.chat_tokenizer(template)
    check_prompts(made, trained=False)
    with pytest.raises(ModelError, match="changes a prompt once it is answered"):
        check_prompts(made, trained=True)


def test_the_refusal_shows_where_the_texts_part() -> None:
    with pytest.raises(ModelError) as caught:
        check_prompts(tiny.chat_tokenizer(THINKING), trained=True)
    assert "<|assistant|>\\n<think>\\n' into '" in str(caught.value)
    assert "<|assistant|>\\n3 and 4 make 7." in str(caught.value)


@pytest.mark.parametrize("template", ["{{ oops", "{{ raise_exception('only systems') }}"])
def test_a_template_that_cannot_be_rendered_is_refused(template: str) -> None:
    with pytest.raises(ModelError, match="cannot be rendered"):
        check_prompts(tiny.chat_tokenizer(template), trained=False)


@pytest.mark.parametrize(
    ("pair", "template"), [((".", "Ġ"), None), ((":", "Ġ"), None), (("Ċ", "3"), CHAT)]
)
def test_a_tokenizer_that_merges_prompt_and_answer_is_refused_for_training(
    pair: tuple[str, str], template: str | None
) -> None:
    made = merging(pair, template)
    check_prompts(made, trained=False)
    with pytest.raises(ModelError, match="merges the end of a prompt"):
        check_prompts(made, trained=True)


def test_one_text_that_would_merge_leaves_the_prompt_as_it_is_sampled() -> None:
    made = merging(("Ċ", "Ċ"), CHAT)
    check_prompts(made, trained=True)
    prompt_ids, completion_ids = trained("\nsix", "cot", made)
    assert prompt_ids == encode_prompt(tiny.question(3), "cot", made)[1]
    assert made.decode(completion_ids[:-1]) == "\nsix"


def test_no_space_comes_between_prompt_and_answer() -> None:
    """A tokenizer that puts one before whatever comes first does so for the prompt only."""
    made = space_first()
    assert made.decode(made.encode("six", add_special_tokens=False)) == " six"
    prompt_ids, completion_ids = trained(" six", "cot", made)
    asked = prompts.render(tiny.question(3), "cot")
    assert made.decode([*prompt_ids, *completion_ids[:-1]]) == f" {asked} six"
    written = encode_as_written("2 + 2 =", "4", "given/0", made)
    assert made.decode(written.completion_ids[:-1]) == "4"
