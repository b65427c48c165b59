"""Monitoring of a sampling while it runs, and its usage of engines in the end.

A thread queries the replicas every two seconds for how busy they are. The progress bar shows it;
the seconds that replicas and GPUs were held add up in a small file next to the parts, also over
kills.
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

from sirt_ray.core.interfaces import Bar
from sirt_ray.logs import current_context, start_thread
from sirt_ray.on_ray.engine.protocol import ReplicaLoad
from sirt_ray.on_ray.engine.server import ModelServer
from sirt_ray.on_ray.metrics import Emitter
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import write_json

_POLL_SECONDS = 2.0
_QUERY_TIMEOUT_SECONDS = 10.0
_FILE = ".usage.json"


@dataclass
class Usage:
    """The usage of engines by a sampling so far, stored in `out/.usage.json`."""

    seconds: float = 0.0
    replica_seconds: float = 0.0
    gpu_seconds: float = 0.0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    generated_tokens: int = 0
    """By the replicas' own counts, also of tokens that are in no part."""

    @classmethod
    def of(cls, out: Path) -> "Usage":
        """Return the stored usage of the sampling in `out`."""
        content = object_store.read(out / _FILE)
        return cls() if content is None else cls(**json.loads(content))

    def save(self, out: Path) -> None:
        """Store the usage, on this node."""
        write_json(out / _FILE, asdict(self))

    def summary(self, completion_tokens: int) -> dict[str, Any]:
        """Return the usage for the artifact's record.

        Wasted are tokens of retried calls and of lost blocks; what a replica wrote in its last two
        seconds is not known.
        """
        return {
            "seconds": round(self.seconds, 1),
            "replica_seconds": round(self.replica_seconds, 1),
            "gpu_seconds": round(self.gpu_seconds, 1),
            "tokens_per_second": round(completion_tokens / self.seconds) if self.seconds else 0,
            "prefix_hit_share": round(self.prefix_hit_share, 3),
            "wasted_tokens": max(0, self.generated_tokens - completion_tokens),
        }

    @property
    def prefix_hit_share(self) -> float:
        """Share of the looked-up prompt tokens that the prefix cache had, 0 to 1."""
        return self.prefix_hit_tokens / max(1, self.prefix_queried_tokens)


class SamplingMonitor:
    """Reports how many questions are finished and how busy the engines are: on the progress bar, in
    metrics, and in messages about the wait."""

    def __init__(self, server: ModelServer, bar: Bar, done: int, out: Path) -> None:
        self._server, self._bar, self._out = server, bar, out
        self._usage = Usage.of(out)
        self._done = self._done_at_start = done
        self._started = self._polled = time.monotonic()
        self._last: dict[str, ReplicaLoad] = {}
        self._figures: dict[str, str | float] = {}
        self._wanted, self._held_s = 0, 0.0
        self._emitter = Emitter(current_context())
        self._lock = threading.Lock()
        self._show()

    def finished(self, questions: int) -> None:
        """Count the questions of a finished block."""
        if (self._out / _FILE).exists():
            object_store.push(self._out / _FILE)
        with self._lock:
            self._done += questions
            self._show()

    def start(self) -> None:
        """Note what the replicas have done before, which is not counted."""
        self._last = self._loads()

    def poll(self) -> None:
        """Query all replicas once."""
        loads = self._loads()
        now = time.monotonic()
        seconds, self._polled = now - self._polled, now
        tokens = self._since_last(loads, "generated_tokens")
        usage, replicas = self._usage, len(loads)
        usage.seconds += seconds
        usage.generated_tokens += tokens
        usage.replica_seconds += seconds * replicas
        usage.gpu_seconds += seconds * replicas * self._server.gpus_per_replica
        queried = self._since_last(loads, "prefix_queried_tokens")
        hit = self._since_last(loads, "prefix_hit_tokens")
        usage.prefix_queried_tokens += queried
        usage.prefix_hit_tokens += hit
        with suppress(OSError):  # Writing the parts, which matter more, reports a full disk.
            usage.save(self._out)
        self._last |= loads
        self._held_s = max((load.held_s for load in loads.values()), default=0.0)
        with self._lock:
            self._figures = {
                "tokens/s": round(tokens / seconds),
                "questions/s": round((self._done - self._done_at_start) / (now - self._started), 1),
                "replicas": replicas,
                "decoding": sum(load.running for load in loads.values()),
                "queued": sum(load.waiting for load in loads.values()),
                "prefix hits": f"{usage.prefix_hit_share:.0%}",
            }
            self._show()
        with suppress(RayError, RayServeException):
            self._wanted = self._server.replicas_wanted()
        self._emit_replicas(replicas, self._wanted)
        emit, role = self._emitter, self._server.role
        for state in ("decoding", "queued"):
            emit.set("sirt_engine_sequences", float(self._figures[state]), role=role, state=state)
        emit.add("sirt_engine_prefix_tokens", hit, role=role, found="yes")
        emit.add("sirt_engine_prefix_tokens", queried - hit, role=role, found="no")

    def end(self) -> None:
        """Query a last time; the stage has no replicas from now on."""
        self.poll()
        self._emit_replicas(0, 0)

    def describe(self) -> str:
        """Return what the engines do, for the message about the wait for a block."""
        ready, decode, queued = (
            self._figures.get(name, 0) for name in ("replicas", "decoding", "queued")
        )
        held = f"; the endpoint requests a pause of {self._held_s:.0f} s" if self._held_s else ""
        return (
            f"{ready} of {self._wanted} replicas are ready, {decode} sequences decode and {queued}"
            f" are queued{held}"
        )

    def _emit_replicas(self, ready: int, wanted: int) -> None:
        role = self._server.role
        self._emitter.set("sirt_replicas", ready, role=role, state="ready")
        self._emitter.set("sirt_replicas", wanted, role=role, state="wanted")

    def _loads(self) -> dict[str, ReplicaLoad]:
        try:
            return self._server.loads(_QUERY_TIMEOUT_SECONDS)
        except (RayError, RayServeException, TimeoutError):
            return {}  # A replica has just died; the next query finds the others.

    def _since_last(self, loads: dict[str, ReplicaLoad], counter: str) -> int:
        """Return the growth of a counter over all replicas; a new replica's starts at 0."""
        new = ReplicaLoad()
        return sum(
            getattr(load, counter) - getattr(self._last.get(name, new), counter)
            for name, load in loads.items()
        )

    def _show(self) -> None:
        self._bar.update(self._done, **self._figures)


@contextmanager
def monitored(server: ModelServer, bar: Bar, done: int, out: Path) -> Generator[SamplingMonitor]:
    """Yield a monitor that polls every two seconds and once more at the end."""
    monitor, stop = SamplingMonitor(server, bar, done, out), threading.Event()

    def keep_polling() -> None:
        monitor.start()
        while not stop.wait(_POLL_SECONDS):
            monitor.poll()

    thread = start_thread(keep_polling, "sampling-monitor")
    try:
        yield monitor
    finally:
        stop.set()
        thread.join()
        monitor.end()
        object_store.push(out / _FILE)
