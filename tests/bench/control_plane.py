"""How fast our control plane is by itself, and how much memory its driver takes.

    python -m tests.bench.control_plane [--rate 20000] [--busy 3000] [--memory 10000 1000000]

The engine only sleeps: a stand-in for a remote one, so that nothing but the control plane is
measured. Three figures, each from a run of `sirt_ray.on_ray.sampling.sampler.Sampler.sample`:

    rate    questions per second through one driver and one replica that answers at once
    busy    share of the time that the places of 16 replicas, with delays as those of a large model,
            are taken
    memory  the driver's resident memory, for few and for many questions
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import psutil
import ray
import ray.cloudpickle
from rich.console import Console

from sirt_ray.benchmarks.registry import grade
from sirt_ray.config.job import SamplingConfig
from sirt_ray.config.resources import EngineConfig, ResourcesConfig
from sirt_ray.core.interfaces import Policy, Progress
from sirt_ray.on_ray.sampling.prompts import TextPrompter
from sirt_ray.on_ray.sampling.worker import SamplingPlan
from sirt_ray.report.progress import LogProgress
from tests.helpers import sleeping_engine
from tests.helpers.progress import RecordedProgress
from tests.helpers.sampling import start_sampler

ray.cloudpickle.register_pickle_by_value(sleeping_engine)


class Plane:
    """A server of sleeping engines, and the way to sample from it."""

    def __init__(self, engine: sleeping_engine.SleepingEngine, replicas: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sirt-bench-"))
        self._sampler = start_sampler(
            "student",
            Policy("bench", "nowhere"),
            EngineConfig(
                num_cpus=0.1,
                device="cpu",
                min_replicas=replicas,
                max_replicas=replicas,
                max_num_seqs=engine.places,
            ),
            run="bench",
            pointers=self._folder,
            serving=engine,
        )
        self.server = self._sampler.server

    def sample(self, count: int, progress: Progress | None = None) -> float:
        """Seconds that it took."""
        out = self._folder / "out"
        began = time.perf_counter()
        counts = self._sampler.sample(
            sleeping_engine.apple_questions(count),
            SamplingPlan({"cot": 1}, SamplingConfig(temperature=1.0), 0),
            TextPrompter("chat"),
            grade,
            out=out,
            block_size=ResourcesConfig().block_size,
            name="samples",
            progress=progress or LogProgress(Console()),
        )
        seconds = time.perf_counter() - began
        if (counts["completions"], counts["dropped"]) != (count, {}):
            raise RuntimeError(f"{counts['completions']} of {count} completions were made")
        shutil.rmtree(out)
        return seconds

    def close(self) -> None:
        self._sampler.stop()
        shutil.rmtree(self._folder)


def rate(count: int) -> float:
    plane = Plane(
        sleeping_engine.SleepingEngine(places=256, shortest_s=0.0, longest_s=0.0), replicas=1
    )
    plane.sample(256)
    seconds = plane.sample(count)
    plane.close()
    print(f"rate: {count:,} questions in {seconds:.1f} s", flush=True)
    return count / seconds


def busy(count: int, replicas: int = 16) -> float:
    """Measured from the first answer on, for as long as there is work for all: at the end of any
    list of questions some engine waits for the others."""
    engine = sleeping_engine.SleepingEngine(places=8, shortest_s=1.0, longest_s=6.0)
    plane = Plane(engine, replicas)
    places = replicas * engine.places
    taken: list[tuple[float, bool]] = []
    bars = RecordedProgress()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            running = sum(load.running for load in plane.server.loads(10).values())
            done = bars.shown[-1][0] if bars.shown else 0
            if running:
                taken.append((running / places, count - done > places))

    thread = threading.Thread(target=watch)
    thread.start()
    seconds = plane.sample(count, bars)
    over.set()
    thread.join()
    plane.close()
    with_work = [share for share, work_for_all in taken if work_for_all]
    mean = sum(with_work) / len(with_work)
    whole = sum(share for share, _ in taken) / len(taken)
    ideal = count * (engine.shortest_s + engine.longest_s) / 2 / places
    print(
        f"busy: {count:,} questions on {replicas} replicas in {seconds:.1f} s (never less than"
        f" {ideal:.1f}); places taken {mean:.0%}, and {whole:.0%} with the end",
        flush=True,
    )
    return mean


def memory(counts: list[int]) -> list[float]:
    plane = Plane(
        sleeping_engine.SleepingEngine(places=256, shortest_s=0.0, longest_s=0.0), replicas=1
    )
    process, peaks = psutil.Process(), []
    for count in counts:
        over, seen = threading.Event(), [0]

        def watch(over: threading.Event = over, seen: list[int] = seen) -> None:
            while not over.wait(0.2):
                seen.append(process.memory_info().rss)

        thread = threading.Thread(target=watch)
        thread.start()
        seconds = plane.sample(count)
        over.set()
        thread.join()
        peaks.append(max(seen) / 2**20)
        print(f"memory: {count:,} questions, {seconds:.0f} s, {peaks[-1]:.0f} MiB", flush=True)
    plane.close()
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--busy", type=int, default=3000)
    parser.add_argument("--memory", type=int, nargs="*", default=[10_000, 1_000_000])
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        result: dict[str, float | list[float]] = {}
        if arguments.rate:
            result["questions_per_second"] = round(rate(arguments.rate))
        if arguments.busy:
            result["busy"] = round(busy(arguments.busy), 3)
        if arguments.memory:
            result["driver_mib"] = [round(peak) for peak in memory(arguments.memory)]
    finally:
        ray.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
