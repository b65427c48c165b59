"""The bare engine, and our whole path. Each samples a `Work` and gives tokens and seconds, as the
scripts in `scripts.py` do."""

import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sirt_ray.config.job import SamplingConfig
from sirt_ray.config.resources import EngineConfig, ResourcesConfig
from sirt_ray.core.encoding import encode_prompt
from sirt_ray.core.interfaces import Policy
from sirt_ray.on_ray.engine.options import engine_kwargs, environment
from sirt_ray.on_ray.sampling.worker import SamplingPlan, request_seed
from sirt_ray.quickstart import assets, tasks
from sirt_ray.types import Question
from tests.helpers.progress import RecordedProgress
from tests.helpers.sampling import start_sampler

MODEL = "quickstart:student"
SAMPLING = SamplingConfig(temperature=0.9, max_tokens=96)
ENGINE = EngineConfig(max_model_len=256)
SEED = 0


@dataclass(frozen=True)
class Rate:
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Work:
    """The questions to sample, `n` completions each, with their prompts as text and as ids."""

    questions: list[Question]
    prompts: list[tuple[str, tuple[int, ...]]]
    n: int

    @classmethod
    def of(cls, count: int, n: int, tokenizer: Any) -> "Work":
        rows = tasks.rows("word_problems", "train", count, seed=3)
        questions = [
            Question(
                f"word_problems/train/{at}", "word_problems", row["question"], (), row["answer"]
            )
            for at, row in enumerate(rows)
        ]
        prompts = [encode_prompt(question, "cot", tokenizer) for question in questions]
        return cls(questions, prompts, n)

    def first(self, count: int) -> "Work":
        return Work(self.questions[:count], self.prompts[:count], self.n)

    @property
    def seeds(self) -> list[int]:
        return [request_seed(SEED, question.id, "cot") for question in self.questions]


class Offline:
    """vLLM's `LLM.generate` in a process of its own, with the settings that our replicas give it.

    vLLM would decode in a process beside the engine's on CPU; in one, as ours, it is faster."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ours, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_answer_offline, args=(theirs,))
        self._process.start()
        self._ours.recv()

    def run(self, work: Work) -> Rate:
        self._ours.send(([ids for _, ids in work.prompts], work.seeds, work.n))
        return self._ours.recv()

    def stop(self) -> None:
        self._ours.send(None)
        self._process.join()


def _answer_offline(connection: Connection) -> None:
    os.environ |= environment(ENGINE, gpu=False)
    from vllm import LLM, EngineArgs, SamplingParams, TokensPrompt

    create = EngineArgs.create_engine_config

    def in_one_process(self: EngineArgs, *args: Any, **kwargs: Any) -> Any:
        config = create(self, *args, **kwargs)
        config.parallel_config.distributed_executor_backend = "uni"
        return config

    EngineArgs.create_engine_config = in_one_process
    kwargs: dict[str, Any] = engine_kwargs(ENGINE, gpu=False) | {"disable_log_stats": True}
    llm = LLM(str(assets.resolve(MODEL)), **kwargs)
    connection.send("ready")
    while (asked := connection.recv()) is not None:
        prompts, seeds, n = asked
        began = time.perf_counter()
        outputs = llm.generate(
            [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts],
            [
                SamplingParams(
                    n=n,
                    seed=seed,
                    temperature=SAMPLING.temperature,
                    max_tokens=SAMPLING.max_tokens,
                    detokenize=False,
                )
                for seed in seeds
            ],
            use_tqdm=False,
        )
        tokens = sum(len(one.token_ids) for output in outputs for one in output.outputs)
        connection.send(Rate(tokens, time.perf_counter() - began))


class Ours:
    """The whole path of a run's stage: questions in, graded and written completions out."""

    def __init__(self, n: int, tokenizer: Any) -> None:
        from sirt_ray.on_ray.sampling.prompts import TokenPrompter

        self._folder = Path(tempfile.mkdtemp(prefix="sirt-bench-"))
        self._prompter = TokenPrompter(tokenizer)
        self._runs = 0
        policy = Policy("bench", str(assets.resolve(MODEL)))
        self._sampler = start_sampler(
            "student",
            policy,
            ENGINE,
            run="bench",
            pointers=self._folder,
            samples_per_question=n,
        )
        self.server = self._sampler.server

    def run(self, work: Work) -> Rate:
        from sirt_ray.benchmarks.registry import grade

        self._runs += 1
        began = time.perf_counter()
        counts = self._sampler.sample(
            work.questions,
            SamplingPlan({"cot": work.n}, SAMPLING, SEED),
            self._prompter,
            grade,
            out=self._folder / f"run_{self._runs}",
            block_size=ResourcesConfig().block_size,
            name="samples",
            progress=RecordedProgress(),
        )
        return Rate(counts["completion_tokens"], time.perf_counter() - began)

    def stop(self) -> None:
        self._sampler.stop()
