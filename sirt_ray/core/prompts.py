"""Question -> prompt. All wording of prompts is in this module.

With the trigger (x_CoT in the paper), for a model without a chat template::

    Choose the answer to the question only from options A, B, C.
    Question: Where would you find many canals?
    Choices:
    A) Michigan
    B) Amsterdam
    C) Venice
    Answer: Let's think step by step.

Without it (x) the prompt ends at ``Answer:``. The wording of the multiple-choice instruction is the
one of the paper's predecessor; the paper's template (its Table 6) was not published in a form that
could be recovered. A model with a chat template gets the same text as a user's message, with the
trigger on a separate line at the end and without ``Answer:``. Conversely, a model without one that
is served messages gets `chat_template`, which turns them into the plain prompt.
"""

from sirt_ray.types import LETTERS, PromptKind, Question

VERSION = "1"
"""Increased whenever the prompts of all benchmarks change: it is part of the fingerprint of every
sampled artifact. If the prompt of one benchmark changes, its `Benchmark.version` is increased.
`tests/golden/prompts.txt` has every prompt as it is rendered."""

TRIGGER = "Let's think step by step."
"""The zero-shot chain-of-thought trigger (Kojima et al. 2022)."""

OPEN_INSTRUCTION = "Answer the math question with a number."
BENCHMARK_INSTRUCTIONS = {"math": "Answer the math question with a number or an expression."}
"""Instructions of the benchmarks for which the general ones would be wrong."""
CHOICE_INSTRUCTION = "Choose the answer to the question only from options {letters}."


def instruction(question: Question) -> str:
    """Return the instruction line i of the demonstration tuple (i, q, a)."""
    if question.instruction is not None:
        return question.instruction
    if not question.choices:
        return BENCHMARK_INSTRUCTIONS.get(question.benchmark, OPEN_INSTRUCTION)
    return CHOICE_INSTRUCTION.format(letters=", ".join(LETTERS[: len(question.choices)]))


def body(question: Question) -> str:
    """Return instruction, question and options: the user's message to a chat model."""
    lines = [instruction(question), f"Question: {question.text}"]
    if question.choices:
        lines.append("Choices:")
        lines += [
            f"{letter}) {text}" for letter, text in zip(LETTERS, question.choices, strict=False)
        ]
    return "\n".join(lines)


def render(question: Question, kind: PromptKind) -> str:
    """Return the prompt for a model without a chat template. A completion starts with a space."""
    answer = f"Answer: {TRIGGER}" if kind == "cot" else "Answer:"
    return f"{body(question)}\n{answer}"


def chat_message(question: Question, kind: PromptKind) -> str:
    """Return the user's message for a model with a chat template."""
    return f"{body(question)}\n{TRIGGER}" if kind == "cot" else body(question)


def chat_template(opens_with_bos: bool) -> str:
    """Return a Jinja template for a model without one: messages -> the plain prompt.

    A message from `chat_message` becomes exactly the prompt that `render` makes of the same
    question; any other one is followed by ``Answer:``, unless it ends so itself. `opens_with_bos`:
    start with BOS, which nothing else adds to the output of a template. An earlier answer ends with
    EOS, as in training.
    """
    opening = "{{- bos_token -}}" if opens_with_bos else ""
    return opening + _CHAT_TEMPLATE


# Line breaks are literal: a reader of the template may take a backslash for an escape sequence.
_CHAT_TEMPLATE = (
    '{%- set trigger = "' + TRIGGER + '" -%}'
    """{%- set newline = "\n" -%}
{%- for message in messages -%}
  {%- set text = message["content"] -%}
  {%- if message["role"] == "assistant" -%}
    {{- text if text.startswith(" ") else " " + text -}}
    {{- eos_token + newline -}}
  {%- elif message["role"] != "user" -%}
    {{- text + newline -}}
  {%- elif text.endswith("Answer:") or text.endswith("Answer: " + trigger) -%}
    {{- text -}}
  {%- elif text.endswith(newline + trigger) -%}
    {{- text[:-(trigger | length)] + "Answer: " + trigger -}}
  {%- else -%}
    {{- text + newline + "Answer:" -}}
  {%- endif -%}
{%- endfor -%}
"""
)
