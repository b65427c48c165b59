"""What is seen of a sampling while it runs, and what it took in the end.

A thread asks the replicas every two seconds how busy they are. The bar shows it; the seconds that
replicas and GPUs were held add up in a small file beside the parts, also over kills.
"""

import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from sirt_ray import storage
from sirt_ray.artifacts import write_json
from sirt_ray.core.interfaces import Bar
from sirt_ray.on_ray.requests import ReplicaLoad
from sirt_ray.on_ray.serving import ModelServer

_EVERY_SECONDS = 2.0
_ANSWER_SECONDS = 10.0
_FILE = ".usage.json"


@dataclass
class Usage:
    """What a sampling took so far, kept in `out/.usage.json`."""

    seconds: float = 0.0
    replica_seconds: float = 0.0
    gpu_seconds: float = 0.0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0

    @classmethod
    def of(cls, out: Path) -> "Usage":
        content = storage.read(out / _FILE)
        return cls() if content is None else cls(**json.loads(content))

    def save(self, out: Path) -> None:
        write_json(out / _FILE, asdict(self))

    def summary(self, completion_tokens: int) -> dict[str, Any]:
        """For the artifact's record."""
        return {
            "seconds": round(self.seconds, 1),
            "replica_seconds": round(self.replica_seconds, 1),
            "gpu_seconds": round(self.gpu_seconds, 1),
            "tokens_per_second": round(completion_tokens / self.seconds) if self.seconds else 0,
            "prefix_hit_share": round(self.prefix_hit_share, 3),
        }

    @property
    def prefix_hit_share(self) -> float:
        return self.prefix_hit_tokens / max(1, self.prefix_queried_tokens)


class Watch:
    """Shows on the bar how many questions are finished and how busy the engines are."""

    def __init__(self, server: ModelServer, bar: Bar, done: int, out: Path) -> None:
        self._server, self._bar, self._out = server, bar, out
        self._usage = Usage.of(out)
        self._done = self._done_at_start = done
        self._began = self._looked = time.monotonic()
        self._last: dict[str, ReplicaLoad] = {}
        self._figures: dict[str, str | float] = {}
        self._lock = threading.Lock()
        self._show()

    def finished(self, questions: int) -> None:
        if (self._out / _FILE).exists():
            storage.push(self._out / _FILE)
        with self._lock:
            self._done += questions
            self._show()

    def begin(self) -> None:
        """What the replicas have done before is not counted."""
        self._last = self._loads()

    def look(self) -> None:
        """Ask all replicas once."""
        loads = self._loads()
        now = time.monotonic()
        seconds, self._looked = now - self._looked, now
        tokens = self._since_last(loads, "generated_tokens")
        usage, replicas = self._usage, len(loads)
        usage.seconds += seconds
        usage.replica_seconds += seconds * replicas
        usage.gpu_seconds += seconds * replicas * self._server.gpus_per_replica
        usage.prefix_queried_tokens += self._since_last(loads, "prefix_queried_tokens")
        usage.prefix_hit_tokens += self._since_last(loads, "prefix_hit_tokens")
        with suppress(OSError):  # That a disk is full is said by the parts, which matter more.
            usage.save(self._out)
        self._last |= loads
        with self._lock:
            self._figures = {
                "tokens/s": round(tokens / seconds),
                "questions/s": round((self._done - self._done_at_start) / (now - self._began), 1),
                "replicas": replicas,
                "decoding": sum(load.running for load in loads.values()),
                "queued": sum(load.waiting for load in loads.values()),
                "prefix hits": f"{usage.prefix_hit_share:.0%}",
            }
            self._show()

    def _loads(self) -> dict[str, ReplicaLoad]:
        try:
            return self._server.loads(_ANSWER_SECONDS)
        except (RayError, RayServeException, TimeoutError):
            return {}  # A replica is being lost; the next look finds the others.

    def _since_last(self, loads: dict[str, ReplicaLoad], counter: str) -> int:
        """What the replicas' counters have grown by; a new replica's starts at nothing."""
        nothing = ReplicaLoad()
        return sum(
            getattr(load, counter) - getattr(self._last.get(name, nothing), counter)
            for name, load in loads.items()
        )

    def _show(self) -> None:
        self._bar.update(self._done, **self._figures)


@contextmanager
def watched(server: ModelServer, bar: Bar, done: int, out: Path) -> Generator[Watch]:
    """A `Watch` that looks every two seconds and once more at the end."""
    watch, stop = Watch(server, bar, done, out), threading.Event()

    def keep_looking() -> None:
        watch.begin()
        while not stop.wait(_EVERY_SECONDS):
            watch.look()

    thread = threading.Thread(target=keep_looking, name="watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()
        watch.look()
        storage.push(out / _FILE)
