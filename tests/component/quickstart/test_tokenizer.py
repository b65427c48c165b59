"""The quickstart's tokenizer: exact for any text, one token per synthetic word."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from sirt_ray.core import prompts
from sirt_ray.quickstart import tasks, tokenizer
from sirt_ray.quickstart.wording import NAMES
from sirt_ray.types import Question

TOKENIZER = tokenizer.build()


def decoded(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True)


def without_special_tokens(text: str) -> bool:
    return not any(token in text for token in (tokenizer.PAD, tokenizer.BOS, tokenizer.EOS))


@settings(deadline=None)
@given(st.text().filter(without_special_tokens))
def test_any_text_comes_back_exactly(text: str) -> None:
    assert decoded(TOKENIZER(text)["input_ids"]) == text


def test_special_tokens_are_distinct_and_encoding_adds_bos() -> None:
    special = [TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id]
    assert special == [tokenizer.PAD_ID, tokenizer.BOS_ID, tokenizer.EOS_ID]
    assert len(set(special)) == 3
    assert TOKENIZER("Tom")["input_ids"][0] == TOKENIZER.bos_token_id
    assert TOKENIZER.eos_token_id not in TOKENIZER("Tom")["input_ids"]
    assert TOKENIZER.chat_template is None


@pytest.mark.parametrize("name", NAMES)
def test_a_word_with_its_space_is_one_token(name: str) -> None:
    assert len(TOKENIZER.tokenize(f" {name}")) == 1


def test_prompt_words_are_single_tokens_and_digits_are_single() -> None:
    question = Question("", "", " Tom has 58 cards.", ("Tom", "Mia"), "A")
    prompt = prompts.render(question, "cot")
    words = prompt.replace("58", "").replace("A)", "").replace("B)", "").split()
    assert len(TOKENIZER.tokenize(prompt)) <= len(words) + 25
    assert TOKENIZER.tokenize(" 58") == ["Ġ", "5", "8"]
    assert TOKENIZER.tokenize("A) Tom (B)") == ["A)", "ĠTom", "Ġ(B)"]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_prompt_and_completion_fit_in_256_tokens(task: str) -> None:
    for index in range(300):
        item = tasks.problem(task, "train", index, 0)
        prompt = prompts.render(item.question(), "cot")
        assert len(TOKENIZER(prompt + item.cot_completion)["input_ids"]) <= 255


@pytest.mark.parametrize("task", tasks.TASKS)
def test_prompt_and_completion_tokenise_apart_as_together(task: str) -> None:
    for index in range(50):
        item = tasks.problem(task, "train", index, 0)
        prompt = prompts.render(item.question(), "cot")
        apart = TOKENIZER.tokenize(prompt) + TOKENIZER.tokenize(item.cot_completion)
        assert apart == TOKENIZER.tokenize(prompt + item.cot_completion)


def test_saved_and_loaded_it_is_the_same(tmp_path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "Question: Zoë has 12 cards.\n"
    assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
