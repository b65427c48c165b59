"""Two scripts that one would write to sample without us, on the same engine behind Ray Serve."""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from sirt_ray.config.resources import EngineConfig
from sirt_ray.on_ray.engine.protocol import SampleRequest
from sirt_ray.on_ray.sampling.prompts import completion_texts
from sirt_ray.types import Question
from tests.bench.contenders import ENGINE, MODEL, SAMPLING, Rate, Work
from tests.helpers.ports import free_port


class _Script:
    """What a script does with completions: grade them, and write a line of JSON for each."""

    def __init__(self) -> None:
        self._out = Path(tempfile.mkstemp(prefix="sirt-bench-", suffix=".jsonl")[1])

    def keep(self, file: TextIO, question: Question, text: str) -> None:
        from sirt_ray.benchmarks.registry import grade

        found = grade(text, question)
        judged = {"verdict": found.verdict, "extracted": found.extracted}
        row = {"id": question.id, "text": text, **judged}
        file.write(json.dumps(row) + "\n")

    def opened(self) -> TextIO:
        return self._out.open("w")

    def stop(self) -> None:
        self._out.unlink()


class N1Requests(_Script):
    """A call of the replica's handle for each single completion, all awaited together."""

    def __init__(self, server: Any, tokenizer: Any) -> None:
        super().__init__()
        self._server = server
        self._tokenizer = tokenizer

    def run(self, work: Work) -> Rate:
        requests = [
            (
                question,
                SampleRequest(
                    text, ids, 1, seed + i, SAMPLING.temperature, 1.0, SAMPLING.max_tokens, "bench"
                ),
            )
            for question, (text, ids), seed in zip(
                work.questions, work.prompts, work.seeds, strict=True
            )
            for i in range(work.n)
        ]
        with self.opened() as file:

            async def one(asked: tuple[Question, SampleRequest]) -> int:
                question, request = asked
                (result,) = await self._server.handle.sample.remote((request,))
                ids = [choice.completion_ids for choice in result.choices]
                for text in completion_texts(self._tokenizer, request.prompt_ids, ids):
                    self.keep(file, question, text)
                return result.completion_tokens

            return asyncio.run(_rate(one, requests, 2 * ENGINE.max_num_seqs))


class Http(_Script):
    """The official client against `sirt serve` on the same Ray: a request of n completions for each
    question, from as many threads as fill the engine twice."""

    def __init__(self, ray_address: str) -> None:
        super().__init__()
        port = free_port()
        default = EngineConfig()
        settings = {
            name: value
            for name, value in ENGINE.model_dump().items()
            if value != getattr(default, name)
        }
        overrides = [
            part for item in settings.items() for part in ("--set", f"{item[0]}={item[1]}")
        ]
        self._url = f"http://127.0.0.1:{port}/v1"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "sirt_ray", "serve", MODEL, "--port", str(port)),
                *("--address", ray_address, *overrides),
            ],
            stdout=subprocess.DEVNULL,
        )
        while True:
            if self._process.poll() is not None:
                raise RuntimeError("`sirt serve` ended before it answered")
            with suppress(OSError), urllib.request.urlopen(f"{self._url}/models"):
                return
            time.sleep(0.5)

    def run(self, work: Work) -> Rate:
        from openai import OpenAI

        def one(asked: tuple[Question, tuple[str, object], int]) -> int:
            question, (text, _), seed = asked
            reply = client.completions.create(
                model=MODEL,
                prompt=text,
                n=work.n,
                seed=seed,
                temperature=SAMPLING.temperature,
                max_tokens=SAMPLING.max_tokens,
            )
            for choice in reply.choices:
                self.keep(file, question, choice.text)
            assert reply.usage is not None
            return reply.usage.completion_tokens

        at_once = 2 * ENGINE.max_num_seqs // work.n
        asked = zip(work.questions, work.prompts, work.seeds, strict=True)
        began = time.perf_counter()
        with (
            OpenAI(base_url=self._url, api_key="none", timeout=600) as client,
            ThreadPoolExecutor(at_once) as threads,
            self.opened() as file,
        ):
            tokens = sum(threads.map(one, asked))
        return Rate(tokens, time.perf_counter() - began)

    def stop(self) -> None:
        super().stop()
        self._process.terminate()
        self._process.wait(timeout=60)


async def _rate(one: Callable[[Any], Awaitable[int]], asked: Iterable[Any], at_once: int) -> Rate:
    free = asyncio.Semaphore(at_once)

    async def bounded(item: Any) -> int:
        async with free:
            return await one(item)

    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*map(bounded, asked)))
    return Rate(tokens, time.perf_counter() - began)
