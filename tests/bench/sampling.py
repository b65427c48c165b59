"""Tokens per second of our sampling, against the bare engine and against what one would script.

    python -m tests.bench.sampling [--questions 1000] [--n 8] [--repeats 3]

All sample the same questions with the quickstart's student, the same prompts, sampling and engine
settings, one engine each, one after the other in every repeat:

    offline      vLLM's `LLM.generate` in a process of its own: the limit
    ours         `sirt_ray.on_ray.sampling.sampler.Sampler.sample`: actors and Serve
    n1_requests  a call of a Serve handle for each completion, as many at once as the replica takes
    http         the official client in threads against `sirt serve`, a request of n a question

All but the first also grade and write what they get. Engines are started and warmed up before,
which is not counted; everything else is. A ratio is the median over the repeats; each repeat
compares neighbours in time, since a machine's speed drifts.
"""

import argparse
import json
import statistics
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray

from sirt_ray.config.resources import ResourcesConfig
from sirt_ray.on_ray.cluster import connected
from sirt_ray.quickstart import assets
from sirt_ray.training.model import load_tokenizer
from sirt_ray.training.tasks import Source
from tests.bench.contenders import ENGINE, MODEL, Offline, Ours, Rate, Work
from tests.bench.scripts import Http, N1Requests

_WARM_UP = 64
"""Questions that are sampled and thrown away, so that nothing is done for the first time."""
_PROCESSES = {
    "VLLM::EngineCore": "engine",
    "ray::ServeReplica": "replica",
    "ray::SamplingActor": "sampling actor",
    "tests.bench.sampling": "driver",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(Source(str(assets.resolve(MODEL))))
    work = Work.of(arguments.questions, arguments.n, tokenizer)
    with connected(
        None, ResourcesConfig(local_cpus=6), Path(tempfile.mkdtemp(prefix="sirt-bench-"))
    ):
        repeats = _compare(arguments, tokenizer, work)
    print(json.dumps(_ratios(repeats)))


def _compare(arguments: argparse.Namespace, tokenizer: Any, work: Work) -> list[dict[str, Rate]]:
    http = Http(ray.get_runtime_context().gcs_address)  # Starts Serve's HTTP proxy, so it is first.
    ours, offline = Ours(arguments.n, tokenizer), Offline()
    contenders = {
        "offline": offline,
        "ours": ours,
        "n1_requests": N1Requests(ours.server, tokenizer),
        "http": http,
    }
    try:
        for contender in contenders.values():
            contender.run(work.first(_WARM_UP))
        repeats = [
            {name: _timed(name, contender, work) for name, contender in contenders.items()}
            for _ in range(arguments.repeats)
        ]
        _explain(ours, work)
        return repeats
    finally:
        for contender in contenders.values():
            contender.stop()


def _timed(name: str, contender: Offline | Ours | N1Requests | Http, work: Work) -> Rate:
    rate = contender.run(work)
    print(
        f"{name:12} {rate.tokens:8,} tokens in {rate.seconds:6.1f} s:"
        f" {rate.tokens_per_second:7,.0f} tokens/s",
        flush=True,
    )
    return rate


def _ratios(repeats: Sequence[Mapping[str, Rate]]) -> dict[str, float]:
    def ours_against(name: str) -> float:
        ratios = [r["ours"].tokens_per_second / r[name].tokens_per_second for r in repeats]
        return round(statistics.median(ratios), 3)

    return {
        "serve_vs_offline": ours_against("offline"),
        "vs_n1_requests": ours_against("n1_requests"),
        "vs_http": ours_against("http"),
    }


def _explain(ours: Ours, work: Work) -> None:
    """One more run of ours, watched: how long the engine was full, and who used the CPUs."""
    decoding: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            decoding.extend(load.running for load in ours.server.loads(10).values())

    thread, before = threading.Thread(target=watch), _cpu_seconds()
    thread.start()
    rate = ours.run(work)
    over.set()
    thread.join()
    used = _cpu_seconds() - before
    full = sum(count >= 0.9 * ENGINE.max_num_seqs for count in decoding) / len(decoding)
    idle = sum(count == 0 for count in decoding) / len(decoding)
    print(
        f"Where ours spends {rate.seconds:.1f} s: engine full (90 % of {ENGINE.max_num_seqs}"
        f" sequences) {full:.0%}, partly full {1 - full - idle:.0%}, idle {idle:.0%} (questions are"
        " laid out, the last parts are written)"
    )
    shares = ", ".join(f"{name} {seconds:.1f}" for name, seconds in used.most_common())
    print(f"CPU seconds: {shares}")


def _cpu_seconds() -> Counter[str]:
    """User and system time so far, by kind of process."""
    used: Counter[str] = Counter()
    for process in psutil.process_iter(["cmdline", "cpu_times", "pid"]):
        name = " ".join(process.info["cmdline"] or ())
        kind = next((kind for part, kind in _PROCESSES.items() if part in name), None)
        if kind is not None and process.info["cpu_times"] is not None:
            used[kind] += process.info["cpu_times"].user + process.info["cpu_times"].system
    return used


if __name__ == "__main__":
    main()
