"""Every benchmark's prompt, as a base model and a chat model get it, against the golden file.

A difference is a change of what models are asked: raise `prompts.VERSION`, or the benchmark's own
version, write the file anew, and read what has changed:

    PYTHONPATH=.:tests python tests/component/core/test_prompts.py
"""

import pytest

from sirt_ray.benchmarks.base import Hub
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.core import prompts
from sirt_ray.core.encoding import encode_prompt
from sirt_ray.types import PromptKind, Question
from tests.helpers import tiny
from tests.helpers.benchmark_rows import ROWS
from tests.helpers.paths import TESTS

GOLDEN = TESTS / "golden" / "prompts.txt"
PUBLISHED = [name for name, benchmark in REGISTRY.items() if isinstance(benchmark.source, Hub)]
KINDS: tuple[PromptKind, ...] = ("cot", "plain")


def question(name: str) -> Question:
    return REGISTRY[name].to_question(ROWS[name], f"{name}/test/0")


def rendered() -> str:
    """All prompts, decoded from their ids, so that every special token is seen."""
    tokenizers = {"base": tiny.byte_tokenizer(), "chat": tiny.chat_tokenizer()}
    sections = [f"Prompts, version {prompts.VERSION}\n"]
    for name in PUBLISHED:
        for kind in KINDS:
            for model, tokenizer in tokenizers.items():
                _, ids = encode_prompt(question(name), kind, tokenizer)
                head = f"==== {name} v{REGISTRY[name].version}, {kind}, {model}"
                sections.append(f"{head}\n{tokenizer.decode(ids)}\n")
    return "\n".join(sections)


def test_prompts_are_the_golden_ones() -> None:
    assert rendered() == GOLDEN.read_text()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_trigger_is_all_that_differs(name: str) -> None:
    asked = question(name)
    plain = prompts.render(asked, "plain")
    assert prompts.render(asked, "cot") == f"{plain} {prompts.TRIGGER}"
    message = prompts.chat_message(asked, "plain")
    assert prompts.chat_message(asked, "cot") == f"{message}\n{prompts.TRIGGER}"
    assert prompts.TRIGGER not in message


if __name__ == "__main__":
    GOLDEN.write_text(rendered())
