"""Text -> token ids, with any tokenizer object. No tokenizer library is imported here.

A prompt is encoded in one function, so that sampling and instruction tuning get the same ids::

    [BOS] instruction, question, options, "Answer: ..."   | completion                   EOS
    prompt_ids                                            | completion_ids

The prompt's ids are a strict prefix of the sequence, exactly as when a model continues a prompt. A
completion is encoded after its prompt, because many tokenizers put a space before the first token.
Where a tokenizer would merge the two for one text, that text is encoded separately; a tokenizer
that always does so, and a chat template that changes an answered prompt, are rejected early
(`check_prompts`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Protocol

from sirt_ray.core import prompts
from sirt_ray.errors import DataError, ModelError
from sirt_ray.types import Demonstration, Graded, PreferencePair, PromptKind, Question

_PROBE = Question("probe", "probe", "What is 3 plus 4?", (), "7")
_PROBE_ANSWER = "3 and 4 make 7. The answer is 7."
_KINDS: tuple[PromptKind, ...] = ("cot", "plain")
_SHOWN = 40
"""Characters of a prompt in an error text."""
_TODAY = date(2024, 7, 26)
"""The date of every prompt whose chat template asks for today's, as Llama 3.2's does: a run that is
resumed on another day has the same prompts. It is the one of these templates where there is no
clock."""


class Tokenizer(Protocol):
    """The methods that are used of a tokenizer; every `transformers` tokenizer has them."""

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def chat_template(self) -> Any: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        **variables: Any,
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One prompt and one completion; the loss is on the completion's tokens only.

    Example::

        TokenSequence(prompt_ids=(1, 17, 9), completion_ids=(40, 41, 2))   # 2 is EOS
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One row of training data, encoded: a sequence to imitate, or a preference pair."""

    question_id: str
    sequences: tuple[TokenSequence, ...]
    """One for instruction tuning; (chosen, rejected) for refinement by pairs, one by KTO."""
    reference_logps: tuple[float, ...] = ()
    """Refinement only: the log-probability of each completion under the reference, in nats."""
    desirable: bool = True
    """KTO only: whether the completion is desirable."""
    mismatched: "TrainingExample | None" = None
    """KTO only: the completion of another question after the same prompt."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(sequence) for sequence in self.sequences)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(sequence) for sequence in self.sequences)


def encode_prompt(
    question: Question, kind: PromptKind, tokenizer: Tokenizer
) -> tuple[str, tuple[int, ...]]:
    """Return the prompt as text, without the BOS that the tokenizer adds, and as ids.

    With a chat template the prompt is the question as a user's message and the template's
    generation prompt, and only the template adds BOS; without one it is the plain prompt, with BOS
    if the tokenizer adds one. Raises ModelError for two BOS tokens.
    """
    to_text = prompts.chat_message if tokenizer.chat_template else prompts.render
    return _encode_prompt(to_text(question, kind), question.id, tokenizer)


def _encode_prompt(
    text: str, question_id: str, tokenizer: Tokenizer
) -> tuple[str, tuple[int, ...]]:
    if tokenizer.chat_template:
        text = _as_chat(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
    ids = _ids(text, tokenizer)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == (bos, bos):
        raise ModelError(
            f"The prompt of question {question_id} starts with two BOS tokens (id {bos}): both the"
            " tokenizer and its chat template add one. Remove one of them from the model's folder"
        )
    return text, ids


def _as_chat(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool
) -> str:
    """Return the messages by the tokenizer's chat template, the same on every day."""
    needs_date = "strftime_now" in str(tokenizer.chat_template)
    return str(
        tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **({"strftime_now": _TODAY.strftime} if needs_date else {}),
        )
    )


def check_pair_ids(pair: PreferencePair, tokenizer: Tokenizer) -> None:
    """Check that the pair's token ids are those of this tokenizer. Raises ModelError."""
    if _ids(pair.prompt, tokenizer) != tuple(pair.prompt_ids):
        raise ModelError(
            f"the pair of question {pair.question_id} holds the token ids of another tokenizer or"
            " chat template, so the student would learn a different text. Train the student that"
            " sampled these pairs, or provide them as text: only the columns prompt, chosen and"
            " rejected"
        )


def missing_chat_template(tokenizer: Tokenizer) -> str | None:
    """Return a template that turns messages into the prompts of `encode_prompt`, for a tokenizer
    without one; None if it has one."""
    if tokenizer.chat_template:
        return None
    return prompts.chat_template(opens_with_bos=bool(_opening(tokenizer)))


def encode_demonstration(
    demonstration: Demonstration, kind: PromptKind, tokenizer: Tokenizer
) -> TokenSequence:
    """Encode the prompt of the demonstrated question and the teacher's text as it is, then EOS.

    Only a space is inserted between a plain prompt and a text that does not start with one: a
    teacher with a chat template, or a file, writes none, and the student has to learn to continue
    its prompt.

    Raises ModelError for a tokenizer without EOS, DataError for a text with EOS in its middle.
    """
    question = demonstration.question
    prompt, prompt_ids = encode_prompt(question, kind, tokenizer)
    text = demonstration.graded.completion.text
    if not tokenizer.chat_template and not text[:1].isspace():
        text = f" {text}"
    return _sequence(prompt, prompt_ids, text, question.id, tokenizer)


def as_student_answer(demonstration: Demonstration, tokenizer: Tokenizer) -> Graded:
    """Return the demonstration as if the student had sampled it from its prompt with the trigger,
    in the ids of `encode_demonstration`. Raises the same errors."""
    prompt, _ = encode_prompt(demonstration.question, "cot", tokenizer)
    sequence = encode_demonstration(demonstration, "cot", tokenizer)
    graded = demonstration.graded
    completion = replace(
        graded.completion,
        prompt_kind="cot",
        prompt=prompt,
        prompt_ids=sequence.prompt_ids,
        completion_ids=sequence.completion_ids,
        stop_reason="stop",
    )
    return replace(graded, completion=completion)


def encode_as_written(
    prompt: str, completion: str, question_id: str, tokenizer: Tokenizer
) -> TokenSequence:
    """Encode an arbitrary prompt, as a user's message where there is a chat template, and its
    completion without an inserted space, then EOS. Raises the errors of `encode_demonstration`."""
    text, prompt_ids = _encode_prompt(prompt, question_id, tokenizer)
    return _sequence(text, prompt_ids, completion, question_id, tokenizer)


def _sequence(
    prompt: str, prompt_ids: tuple[int, ...], text: str, question_id: str, tokenizer: Tokenizer
) -> TokenSequence:
    eos = end_of_sequence(tokenizer)
    whole = _ids(prompt + text, tokenizer)
    if whole[: len(prompt_ids)] == prompt_ids:
        ids = list(whole[len(prompt_ids) :])
    else:
        ids = list(tokenizer.encode(text, add_special_tokens=False))
    while ids and ids[-1] == eos:
        ids.pop()
    if eos in ids:
        raise DataError(
            f"The demonstration of question {question_id} has the end-of-sequence"
            " token in the middle of its text, so it cannot be learned as one answer"
        )
    return TokenSequence(prompt_ids, (*ids, eos))


def encode_pair(
    pair: PreferencePair, reference_logps: tuple[float, float] | None = None
) -> TrainingExample:
    """Return chosen and rejected, if there is one, after the pair's prompt, in the sampled ids."""
    return TrainingExample(
        pair.question_id,
        tuple(
            TokenSequence(pair.prompt_ids, side.completion.completion_ids)
            for side in (pair.chosen, pair.rejected)
            if side is not None
        ),
        reference_logps or (),
    )


def end_of_sequence(tokenizer: Tokenizer) -> int:
    """Return the id that ends a completion. It may be the padding id, too: padding is never
    recognised by its id. Raises ModelError if there is none."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "The tokenizer has no end-of-sequence token, so a student could not learn to stop."
            " Set eos_token in the model's tokenizer_config.json"
        )
    return tokenizer.eos_token_id


def check_prompts(tokenizer: Tokenizer, trained: bool) -> None:
    """Check the prompts of one question before anything is started. Raises ModelError.

    A chat template that cannot be rendered and a double BOS are rejected. `trained`: the model is
    also trained on answers to these prompts. Then a prompt must be a prefix of itself and its
    answer together, as text and as ids: a template that drops, strips or changes what precedes an
    answer is rejected, as is a tokenizer that merges the end of every prompt with the beginning of
    its answer, and a template that ignores `add_generation_prompt` and opens answers all the same.
    """
    for kind in _KINDS:
        try:
            prompt, prompt_ids = encode_prompt(_PROBE, kind, tokenizer)
            answered = _answered(prompt, kind, tokenizer) if trained else []
            header = _missing_header(prompt, kind, tokenizer) if trained else None
        except ModelError:
            raise
        except Exception as error:  # A template is a foreign program and may raise anything.
            raise ModelError(
                f"the chat template cannot be rendered for a user's message: {error}. Fix"
                " chat_template in the model's folder, or remove it to use plain prompts"
            ) from error
        for text in answered:
            if not text.startswith(prompt):
                raise ModelError(
                    "the chat template changes a prompt once it is answered, so the student's"
                    " training sequences would not begin with its prompts. It turns"
                    f" {_difference(prompt, text)} Give the model's folder a chat template whose"
                    " generation prompt is how an answer begins, or remove it to use plain prompts"
                )
            if _ids(text, tokenizer)[: len(prompt_ids)] != prompt_ids:
                raise ModelError(
                    f"the tokenizer merges the end of a prompt, {prompt[-_SHOWN:]!r}, with the"
                    " beginning of its answer, so the student's training sequences would not begin"
                    " with the tokens of its prompts. Give the model's folder a chat template whose"
                    " generation prompt ends in a special token, or choose another student"
                )
        if header:
            raise ModelError(
                "the chat template ignores add_generation_prompt, so the student would learn to"
                f" answer without {header!r}, with which it opens an answer. Add"
                " `{% if add_generation_prompt %}...{% endif %}` with that text to chat_template in"
                " the model's folder"
            )


def _answered(prompt: str, kind: PromptKind, tokenizer: Tokenizer) -> list[str]:
    """Return the probe's prompt with its answer, as in training and as the chat template has it."""
    if not tokenizer.chat_template:
        return [f"{prompt} {_PROBE_ANSWER}"]
    whole = _as_chat(tokenizer, _messages(kind), add_generation_prompt=False)
    return [whole, prompt + _PROBE_ANSWER]


def _messages(kind: PromptKind) -> list[dict[str, str]]:
    """Return the probe's question and its answer as a conversation."""
    return [
        {"role": "user", "content": prompts.chat_message(_PROBE, kind)},
        {"role": "assistant", "content": _PROBE_ANSWER},
    ]


def _missing_header(prompt: str, kind: PromptKind, tokenizer: Tokenizer) -> str | None:
    """Return what the chat template puts before an answer and leaves out of a prompt; None for a
    template whose prompts are opened for the answer, or need no opening."""
    if not tokenizer.chat_template:
        return None
    messages = _messages(kind)
    if _as_chat(tokenizer, messages[:1], add_generation_prompt=False) != prompt:
        return None
    before, found, _ = _as_chat(tokenizer, messages, False).partition(_PROBE_ANSWER)
    header = before.removeprefix(prompt)
    return header if found and before.startswith(prompt) and header.strip() else None


def end_of_turn_warning(tokenizer: Tokenizer) -> str | None:
    """Return what is wrong where the chat template ends an answer in another token than EOS, with
    which completions are trained to end; None where they agree, and without a template."""
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        return None
    _, found, tail = _as_chat(tokenizer, _messages("cot"), False).partition(_PROBE_ANSWER)
    ids = tokenizer.encode(tail.strip(), add_special_tokens=False) if found else []
    if not ids or tokenizer.eos_token_id in ids:
        return None
    return (
        f"its chat template ends an answer in {tail.strip()!r}, and its EOS (id"
        f" {tokenizer.eos_token_id}) is another token: the student learns to end its answers in"
        " EOS, and a chat client waits for the template's. Set `eos_token` in its"
        " tokenizer_config.json to the token that ends a turn, unless that is meant"
    )


def _difference(prompt: str, text: str) -> str:
    """Return the first difference between a prompt and its answered form, for an error text."""
    pairs = enumerate(zip(prompt, text, strict=False))
    index = next(
        (index for index, (one, other) in pairs if one != other), min(len(prompt), len(text))
    )
    start = max(0, index - _SHOWN // 2)
    return f"{prompt[start : index + _SHOWN]!r} into {text[start : index + _SHOWN]!r}."


def _ids(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Encode a text at the start of a sequence. If there is a template, only the template adds
    BOS."""
    opening = () if tokenizer.chat_template else _opening(tokenizer)
    return (*opening, *tokenizer.encode(text, add_special_tokens=False))


def _opening(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return BOS if the tokenizer puts one before a plain text, else nothing."""
    bos = tokenizer.bos_token_id
    added = tokenizer.encode("", add_special_tokens=True)
    return (bos,) if bos is not None and added[:1] == [bos] else ()
