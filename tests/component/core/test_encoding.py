"""Text to ids: BOS once, the prompt a prefix, EOS once at the end."""

from dataclasses import replace
from typing import Any

import pytest

from sirt_ray.core import prompts
from sirt_ray.core.encoding import (
    as_student_answer,
    check_prompts,
    encode_demonstration,
    encode_pair,
    encode_prompt,
    end_of_turn_warning,
    missing_chat_template,
)
from sirt_ray.errors import DataError, ModelError
from sirt_ray.types import Demonstration, PromptKind
from tests.helpers import tiny

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def demonstrated(text: str) -> Demonstration:
    made = tiny.demonstration(3)
    completion = replace(made.graded.completion, text=text)
    return replace(made, graded=replace(made.graded, completion=completion))


def chat_tokenizer(template: str = TEMPLATE) -> Any:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_plain_prompt_is_the_rendered_text_after_one_bos() -> None:
    tokenizer = tiny.byte_tokenizer()
    text, ids = encode_prompt(tiny.question(3), "cot", tokenizer)
    assert text == prompts.render(tiny.question(3), "cot")
    assert ids[0] == 1
    assert 1 not in ids[1:]
    assert 2 not in ids
    assert tokenizer.decode(ids[1:]) == text


def test_no_bos_where_the_tokenizer_puts_none() -> None:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    _, ids = encode_prompt(tiny.question(3), "cot", tokenizer)
    assert 1 not in ids


def test_chat_prompt_has_the_question_as_the_users_message_and_one_bos() -> None:
    text, ids = encode_prompt(tiny.question(3), "plain", chat_tokenizer())
    message = prompts.chat_message(tiny.question(3), "plain")
    assert text == f"<s>[user] {message}[assistant]"
    assert ids[0] == 1
    assert 1 not in ids[1:]


def test_doubled_bos_is_refused() -> None:
    with pytest.raises(ModelError, match="two BOS"):
        encode_prompt(tiny.question(3), "cot", chat_tokenizer("<s>" + TEMPLATE))


@pytest.mark.parametrize("kind", ["cot", "plain"])
def test_demonstration_is_prompt_then_the_teachers_text_then_eos(kind: Any) -> None:
    tokenizer = tiny.byte_tokenizer()
    sequence = encode_demonstration(demonstrated(" six. \n"), kind, tokenizer)
    assert sequence.prompt_ids == encode_prompt(tiny.question(3), kind, tokenizer)[1]
    assert sequence.completion_ids[-1] == 2
    assert tokenizer.decode(sequence.completion_ids[:-1]) == " six. \n"
    assert len(sequence) == len(sequence.prompt_ids) + len(" six. \n") + 1


def test_a_text_without_a_space_gets_one_behind_a_plain_prompt_only() -> None:
    plain, chat = tiny.byte_tokenizer(), chat_tokenizer()
    with_space = encode_demonstration(demonstrated(" six"), "cot", plain)
    assert encode_demonstration(demonstrated("six"), "cot", plain) == with_space
    ids = encode_demonstration(demonstrated("six"), "cot", chat).completion_ids
    assert chat.decode(ids[:-1]) == "six"


def test_eos_that_the_teacher_wrote_at_the_end_is_not_doubled() -> None:
    sequence = encode_demonstration(demonstrated(" six</s>"), "cot", tiny.byte_tokenizer())
    assert sequence.completion_ids.count(2) == 1


def test_eos_inside_a_demonstration_is_refused() -> None:
    with pytest.raises(DataError, match="middle"):
        encode_demonstration(demonstrated(" six</s> seven"), "cot", tiny.byte_tokenizer())


def test_padding_with_eos_changes_nothing() -> None:
    usual = encode_demonstration(demonstrated(" six"), "cot", tiny.byte_tokenizer())
    padded_with_eos = tiny.byte_tokenizer(pad=tiny.EOS)
    assert encode_demonstration(demonstrated(" six"), "cot", padded_with_eos) == usual


def test_tokenizer_without_eos_is_refused() -> None:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        encode_demonstration(demonstrated(" six"), "cot", tokenizer)


def test_pair_keeps_the_samplers_ids_after_the_pairs_prompt() -> None:
    pair = tiny.pair(3)
    example = encode_pair(pair, (-1.0, -2.0))
    chosen, rejected = example.sequences
    assert pair.rejected is not None
    assert chosen.completion_ids == pair.chosen.completion.completion_ids
    assert rejected.completion_ids == pair.rejected.completion.completion_ids
    assert chosen.prompt_ids == rejected.prompt_ids == pair.prompt_ids
    assert example.reference_logps == (-1.0, -2.0)


def test_a_demonstration_as_own_has_the_ids_that_tuning_trains_on() -> None:
    teachers, tokenizer = demonstrated(" six"), tiny.byte_tokenizer()
    own = as_student_answer(teachers, tokenizer).completion
    sequence = encode_demonstration(teachers, "cot", tokenizer)
    assert (own.prompt_ids, own.completion_ids) == (sequence.prompt_ids, sequence.completion_ids)
    assert (own.text, own.prompt_kind, own.stop_reason) == (" six", "cot", "stop")


class TestMissingChatTemplate:
    @pytest.mark.parametrize("kind", ["cot", "plain"])
    @pytest.mark.parametrize("with_bos", [True, False])
    def test_a_question_as_a_message_becomes_its_plain_prompt(
        self, kind: PromptKind, with_bos: bool
    ) -> None:
        tokenizer = tiny.byte_tokenizer()
        if not with_bos:
            tokenizer.backend_tokenizer.post_processor = None
        asked = replace(tiny.question(3), choices=("six", "seven"))
        _, plain_ids = encode_prompt(asked, kind, tokenizer)
        tokenizer.chat_template = missing_chat_template(tokenizer)
        _, ids = encode_prompt(asked, kind, tokenizer)
        assert ids == plain_ids

    @pytest.mark.parametrize(
        ("message", "prompt"),
        [
            ("2 + 2?", "2 + 2?\nAnswer:"),
            ("2 + 2?\n" + prompts.TRIGGER, "2 + 2?\nAnswer: " + prompts.TRIGGER),
            ("2 + 2?\nAnswer:", "2 + 2?\nAnswer:"),
            ("2 + 2?\nAnswer: " + prompts.TRIGGER, "2 + 2?\nAnswer: " + prompts.TRIGGER),
            ('a "quoted" \\n {{ word }}', 'a "quoted" \\n {{ word }}\nAnswer:'),
        ],
    )
    def test_any_message_is_asked_for_an_answer_once(self, message: str, prompt: str) -> None:
        assert rendered({"role": "user", "content": message}) == "<s>" + prompt

    def test_earlier_turns_stand_before_it_and_end_as_answers_do(self) -> None:
        text = rendered(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "3 + 3?"},
        )
        assert text == "<s>Be brief.\n2 + 2?\nAnswer: 4</s>\n3 + 3?\nAnswer:"

    def test_a_tokenizer_that_has_a_template_keeps_it(self) -> None:
        assert missing_chat_template(chat_tokenizer()) is None


def rendered(*messages: dict[str, str]) -> str:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = missing_chat_template(tokenizer)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


class TestTemplatesThatOpenAnswers:
    OPENED = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"

    def test_one_that_does_not_do_so_for_a_prompt_is_refused(self) -> None:
        with pytest.raises(ModelError, match=r"ignores add_generation_prompt.*'<assistant>'"):
            check_prompts(chat_tokenizer(self.OPENED), trained=True)
        check_prompts(chat_tokenizer(self.OPENED), trained=False)

    def test_one_that_does_is_not(self) -> None:
        opening = "{% if add_generation_prompt %}<assistant>{% endif %}"
        check_prompts(chat_tokenizer(self.OPENED + opening), trained=True)

    @pytest.mark.parametrize("between", ["", " ", "\n"])
    def test_nor_is_one_that_opens_them_by_nothing(self, between: str) -> None:
        """As Mistral's, whose prompts end in [/INST]."""
        template = (
            "{% for m in messages %}{% if m['role'] == 'user' %}[INST]{{ m['content'] }}[/INST]"
            "{% else %}" + between + "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
        )
        check_prompts(chat_tokenizer(template), trained=True)

    def test_thoughts_between_are_no_header(self) -> None:
        """As Qwen3's: the generation prompt opens the answer, and the template thinks first."""
        template = self.OPENED.replace(
            "{{ m['content'] }}",
            "{% if m['role'] == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}",
        )
        opening = "{% if add_generation_prompt %}<assistant>{% endif %}"
        check_prompts(chat_tokenizer(template + opening), trained=True)


@pytest.mark.parametrize(
    ("end", "warned"), [("<end>\n", True), ("{{ eos_token }}\n", False), ("", False), ("\n", False)]
)
def test_a_turn_that_ends_in_another_token_than_eos_is_warned_of(end: str, warned: bool) -> None:
    template = "{% for m in messages %}{{ m['content'] }}" + end + "{% endfor %}"
    warning = end_of_turn_warning(chat_tokenizer(template))
    assert (warning is not None) == warned
    assert not warned or "ends an answer in '<end>'" in str(warning)
    assert end_of_turn_warning(tiny.byte_tokenizer()) is None


def test_a_prompt_is_the_same_on_every_day() -> None:
    template = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if not date_string is defined %}{{ strftime_now('%H:%M') }}{% endif %}"
    )
    text, _ = encode_prompt(tiny.question(3), "cot", chat_tokenizer(template))
    assert text.startswith("26 Jul 2024") and text.endswith("00:00")
