"""Trackers hear what a run tells, each in a thread of its own, and can never hold it up.

A tracker that raises, or does not keep up, is given up: one warning says why, and the run goes on
without it.
"""

import json
import logging
import queue
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sirt_ray.config.base import leaves_of
from sirt_ray.config.job import JobConfig, TrackerName
from sirt_ray.logs import without_secrets
from sirt_ray.place import thread_here
from sirt_ray.storage.uri import masked
from sirt_ray.tracking.base import Origin, Tracker
from sirt_ray.tracking.feed import Feed, Sent
from sirt_ray.tracking.packages import TRACKERS

_FOLDER = "tracking"
"""In a run's folder: what each tracker has been told."""

_MOST_WAITING = 10_000
"""Things that a tracker has not taken yet, after which it is given up."""
_END_SECONDS = 30.0
"""For what it has not taken when the run is over."""

Warn = Callable[[str, str], None]
"""(tracker, message)"""
Heard = tuple[str | None, Mapping[str, Any]]


class Sender:
    """One tracker. `open` makes it, in its thread, when there is something to tell it."""

    def __init__(
        self,
        name: str,
        open: Callable[[Sent], Tracker],
        run_dir: Path,
        warn: Warn,
        end_seconds: float = _END_SECONDS,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._name, self._open, self._run_dir, self._warn = name, open, run_dir, warn
        self._end_seconds = end_seconds
        self._waiting: queue.Queue[Heard | None] = queue.Queue(most_waiting)
        self._given_up = self._ended = self._failed = False
        self._thread = thread_here(self._send, f"tracker {name}")

    def put(self, event: str | None, fields: Mapping[str, Any]) -> None:
        if self._given_up or self._ended:
            return
        try:
            self._waiting.put_nowait((event, fields))
        except queue.Full:
            self._give_up(f"it does not keep up ({self._waiting.maxsize:,} things wait for it)")

    def end(self, failed: bool) -> None:
        """Wait until everything is sent, but not long."""
        if self._given_up or self._ended:
            return
        self._ended, self._failed = True, failed
        with suppress(queue.Full):
            self._waiting.put(None, timeout=self._end_seconds)
            self._thread.join(self._end_seconds)
        if self._thread.is_alive():
            self._give_up(f"it has not taken everything within {self._end_seconds:.0f} s")

    def _send(self) -> None:
        try:
            self._send_all()
        except Exception as error:  # a tracker's network, disk and package may raise anything
            said = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            self._give_up(without_secrets(f"{type(error).__name__}: {said}"))

    def _send_all(self) -> None:
        sent = Sent.of(self._run_dir / _FOLDER / f"{self._name}.json")
        feed = Feed(self._run_dir, sent, self._open)
        while (heard := self._waiting.get()) is not None:
            if self._given_up:
                return
            feed.hear(*heard)
            if self._waiting.empty():
                feed.flush()
        feed.end(self._failed)

    def _give_up(self, reason: str) -> None:
        if not self._given_up:
            self._given_up = True
            self._warn(
                self._name,
                f"{self._name} is told nothing more of this run: {reason}. The run goes on; when it"
                " is started again, it tries again",
            )


class Trackers(logging.Handler):
    """All trackers of a job. They end with the run: with its last event."""

    def __init__(
        self, job: JobConfig, run_dir: Path, warn: Warn, end_seconds: float = _END_SECONDS
    ) -> None:
        super().__init__()
        self._senders = [
            Sender(name, partial(_opened, name, job, run_dir), run_dir, warn, end_seconds)
            for name in dict.fromkeys(job.tracking)
        ]

    def createLock(self) -> None:
        """None: a tracker that fails while its end is waited for could not say so."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        event: str | None = record.__dict__.get("event")
        fields: Mapping[str, Any] = record.__dict__.get("fields", {})
        of_run = "artifact" not in fields
        for sender in self._senders:
            sender.put(event, fields)
            if event == "stopped" or (event == "finished" and of_run):
                sender.end(failed=event == "stopped")


def _opened(name: TrackerName, job: JobConfig, run_dir: Path, sent: Sent) -> Tracker:
    stated = json.loads(masked(without_secrets(job.model_dump_json())))
    return TRACKERS[name](Origin(job.name, run_dir, dict(leaves_of(stated)), sent.ids))
