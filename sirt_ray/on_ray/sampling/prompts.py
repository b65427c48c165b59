"""Questions -> prompts, and an engine's choices -> text: for engines that take token ids, and for
those that take text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sirt_ray.core.encoding import encode_prompt
from sirt_ray.endpoint.replies import Api
from sirt_ray.endpoint.request import prompt_of
from sirt_ray.on_ray.engine.protocol import SampledChoice
from sirt_ray.types import PromptKind, Question

_CONTEXT_TOKENS = 4


class Prompter(Protocol):
    """The conversion of questions to prompts, and of choices to text."""

    def prompt(self, question: Question, kind: PromptKind) -> tuple[str, tuple[int, ...]]:
        """Return the prompt as text and as token ids."""
        ...

    def texts(self, prompt_ids: Sequence[int], choices: Sequence[SampledChoice]) -> list[str]:
        """Return the completions of one prompt as text."""
        ...


@dataclass(frozen=True)
class TokenPrompter:
    """The prompter of an engine that takes and returns token ids. The driver loads the tokenizer: a
    sampling actor takes a second to unpickle it, and five to find and load it."""

    tokenizer: Any

    def prompt(self, question: Question, kind: PromptKind) -> tuple[str, tuple[int, ...]]:
        return encode_prompt(question, kind, self.tokenizer)

    def texts(self, prompt_ids: Sequence[int], choices: Sequence[SampledChoice]) -> list[str]:
        ids = [choice.completion_ids for choice in choices]
        return completion_texts(self.tokenizer, prompt_ids, ids)


@dataclass(frozen=True)
class TextPrompter:
    """The prompter of an engine that tokenises by itself, as one behind an endpoint does."""

    api: Api

    def prompt(self, question: Question, kind: PromptKind) -> tuple[str, tuple[int, ...]]:
        return prompt_of(self.api, question, kind), ()

    def texts(self, prompt_ids: Sequence[int], choices: Sequence[SampledChoice]) -> list[str]:
        return [choice.text or "" for choice in choices]


def completion_texts(
    tokenizer: Any, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]
) -> list[str]:
    """Return the completions of one prompt as text, without special tokens, leading spaces kept.

    They are decoded after the prompt's last tokens, because a tokenizer of the SentencePiece kind
    drops the space before the first token.
    """
    context = list(prompt_ids[-_CONTEXT_TOKENS:])
    before = tokenizer.decode(context, skip_special_tokens=True)
    texts: list[str] = []
    for ids in completions:
        whole = tokenizer.decode([*context, *ids], skip_special_tokens=True)
        has_context = whole.startswith(before)
        texts.append(
            whole[len(before) :] if has_context else tokenizer.decode(ids, skip_special_tokens=True)
        )
    return texts
