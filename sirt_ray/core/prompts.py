"""Question -> prompt. The only place where a prompt's wording lives.

With the trigger (x_CoT in the paper), for a model without a chat template::

    Choose the answer to the question only from options A, B, C.
    Question: Where would you find many canals?
    Choices:
    A) Michigan
    B) Amsterdam
    C) Venice
    Answer: Let's think step by step.

Without it (x) the prompt ends at ``Answer:``. The wording of the multiple-choice instruction is the
one of the paper's predecessor; the paper's own template (its Table 6) was not published in a form
that could be recovered. A model with a chat template gets the same text as a user's message, the
trigger on a line of its own at the end, and no ``Answer:``. The other way round, a model without
one that is asked in messages gets them by `chat_template`, which makes the plain prompt of them.
"""

from sirt_ray.types import LETTERS, PromptKind, Question

VERSION = "1"
"""Raised whenever the prompts of all benchmarks change: it is part of every sampled artifact's
identity. Where only one benchmark is asked in other words, its own `Benchmark.version` is raised.
`tests/golden/prompts.txt` shows every prompt as it is rendered."""

TRIGGER = "Let's think step by step."
"""The zero-shot chain-of-thought trigger (Kojima et al. 2022)."""

OPEN_INSTRUCTION = "Answer the math question with a number."
BENCHMARK_INSTRUCTIONS = {"math": "Answer the math question with a number or an expression."}
"""Of the benchmarks that the other two would ask for the wrong thing."""
CHOICE_INSTRUCTION = "Choose the answer to the question only from options {letters}."


def instruction(question: Question) -> str:
    """The instruction line i of the demonstration tuple (i, q, a)."""
    if question.instruction is not None:
        return question.instruction
    if not question.choices:
        return BENCHMARK_INSTRUCTIONS.get(question.benchmark, OPEN_INSTRUCTION)
    return CHOICE_INSTRUCTION.format(letters=", ".join(LETTERS[: len(question.choices)]))


def body(question: Question) -> str:
    """Instruction, question and options; what a chat model is sent as the user's message."""
    lines = [instruction(question), f"Question: {question.text}"]
    if question.choices:
        lines.append("Choices:")
        lines += [
            f"{letter}) {text}" for letter, text in zip(LETTERS, question.choices, strict=False)
        ]
    return "\n".join(lines)


def render(question: Question, kind: PromptKind) -> str:
    """The whole prompt for a model without a chat template. A completion starts with a space."""
    answer = f"Answer: {TRIGGER}" if kind == "cot" else "Answer:"
    return f"{body(question)}\n{answer}"


def chat_message(question: Question, kind: PromptKind) -> str:
    """The user's message for a model with a chat template."""
    return f"{body(question)}\n{TRIGGER}" if kind == "cot" else body(question)


def chat_template(opens_with_bos: bool) -> str:
    """A Jinja template for a model without one: messages -> the plain prompt.

    A user's message that `chat_message` made becomes exactly what `render` makes of the same
    question; any other is followed by ``Answer:``, unless it ends so itself. `opens_with_bos`: put
    BOS, which no one adds behind a template. An earlier answer ends with EOS, as it was learned.
    """
    opening = "{{- bos_token -}}" if opens_with_bos else ""
    return opening + _CHAT_TEMPLATE


# Line breaks stand as they are: what reads this may take a backslash for the start of an escape.
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
