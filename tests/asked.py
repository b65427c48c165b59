"""What the tests of sampling share: what is asked, how it is graded, and what real engines are
compared with. The models have random weights."""

from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM

from sirt_ray.config import SamplingConfig
from sirt_ray.on_ray.block_sampler import Grade, SamplingPlan
from sirt_ray.on_ray.serving import ModelServer
from sirt_ray.types import Judgement, Question

MAX_TOKENS = 24
PLAN = SamplingPlan(
    (("cot", 8), ("plain", 1)), SamplingConfig(temperature=0.9, max_tokens=MAX_TOKENS), seed=5
)


def question(row: int, length: int = 20) -> Question:
    return Question(f"toy/train/{row}", "toy", f"{row} is " + "so " * (length // 3), (), "3")


QUESTIONS = [question(row, length=10 + 3 * row) for row in range(10)]


def grader() -> Grade:
    """A local function travels to Ray's workers by value; this module is not importable there."""

    def grade(text: str, question: Question) -> Judgement:
        readable = text.startswith(tuple("abcdefghij "))
        if not readable:
            return Judgement("unparseable", None, stated=False)
        return Judgement("right", text[:1], stated=True)

    return grade


def engine_process(server: ModelServer) -> int:
    """vLLM's own process, below the replica's."""
    processes = server.handle.facts.remote().result(timeout_s=120).process_ids
    return next(pid for pid in processes if "EngineCore" in " ".join(psutil.Process(pid).cmdline()))


def greedy_reference(checkpoint: Path, prompt: tuple[int, ...]) -> tuple[int, ...]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=MAX_TOKENS, do_sample=False)
    return tuple(ids[0, len(prompt) :].tolist())
