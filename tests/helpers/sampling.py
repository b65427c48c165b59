"""What the tests of sampling share: what is asked, how it is graded, and what real engines are
compared with. The models have random weights."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sirt_ray.artifacts import parquet
from sirt_ray.config.job import SamplingConfig
from sirt_ray.core.interfaces import Counts
from sirt_ray.on_ray.engine.server import ModelServer
from sirt_ray.on_ray.sampling.prompts import Prompter, TokenPrompter
from sirt_ray.on_ray.sampling.sampler import Sampler
from sirt_ray.on_ray.sampling.worker import Grade, SamplingPlan
from sirt_ray.types import Judgement, Question
from tests.helpers.progress import RecordedProgress
from tests.helpers.sleeping_engine import wait_until

MAX_TOKENS = 24
BLOCK = 8
"""Questions of one, where `Sampling` asks them."""
PLAN = SamplingPlan(
    {"cot": 8, "plain": 1}, SamplingConfig(temperature=0.9, max_tokens=MAX_TOKENS), seed=5
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


def start_server(*args: Any, **kwargs: Any) -> ModelServer:
    """Deploy a server and wait until its engines are ready."""
    server = ModelServer.deploy(*args, **kwargs)
    server.wait_until_ready()
    return server


def start_sampler(*args: Any, **kwargs: Any) -> Sampler:
    """Deploy a sampler and wait until its engines are ready."""
    sampler = Sampler.deploy(*args, **kwargs)
    sampler.server.wait_until_ready()
    return sampler


def engine_process(server: ModelServer) -> int:
    """vLLM's own process, below the replica's."""
    processes = server.handle.facts.remote().result(timeout_s=120).process_ids
    return next(pid for pid in processes if "EngineCore" in " ".join(psutil.Process(pid).cmdline()))


def greedy_reference(checkpoint: Path, prompt: tuple[int, ...]) -> tuple[int, ...]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=MAX_TOKENS, do_sample=False)
    return tuple(ids[0, len(prompt) :].tolist())


class Sampling:
    """A sampler and what it samples."""

    def __init__(
        self,
        sampler: Sampler,
        plan: SamplingPlan,
        prompter: Prompter,
        questions: list[Question],
        grade: Grade,
    ) -> None:
        self.sampler, self.server = sampler, sampler.server
        self.plan, self.prompter = plan, prompter
        self.questions, self.grade = questions, grade

    @classmethod
    def of(cls, sampler: Sampler, model: Path) -> "Sampling":
        """Enough for a real engine to need some seconds."""
        plan = SamplingPlan({"cot": 4}, SamplingConfig(temperature=0.9, max_tokens=160), seed=5)
        prompter = TokenPrompter(AutoTokenizer.from_pretrained(model))
        return cls(sampler, plan, prompter, [question(row) for row in range(48)], grader())

    def into(self, out: Path, questions: list[Question] | None = None) -> Counts:
        return self.sampler.sample(
            questions or self.questions,
            self.plan,
            self.prompter,
            self.grade,
            out=out,
            block_size=BLOCK,
            name="samples",
            progress=RecordedProgress(),
        )

    def disturbed(self, out: Path, after: float, fault: Callable[[], None]) -> Counts:
        """Sample, and call `fault` when this share of the parts is there."""
        parts = int(after * len(self.questions) / BLOCK)

        def wait_and_strike() -> None:
            wait_until(lambda: len(parquet.files(out)) >= parts, 100, f"part {parts}")
            fault()

        strike = threading.Thread(target=wait_and_strike)
        strike.start()
        try:
            return self.into(out)
        finally:
            strike.join()
