"""Where in a run something happens: what log lines and metrics are labelled with.

    with in_run("mine"):
        with at_artifact("round_01/pairs"):
            here()                           # Place("mine", "round_01", "pairs")

A thread begins nowhere, and a process too: what starts one hands its place over (`thread_here`,
`at`).
"""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Place:
    """Nothing is known of a field that is empty."""

    run: str = ""
    """The job's name."""
    round: str = ""
    """`round_01`, or the model that is evaluated: `teacher`, `baseline`. What all rounds have in
    common has none."""
    stage: str = ""
    """What is made: `questions`, `demonstrations`, `samples`, `pairs`, `reference`, `student`,
    `evaluation`."""


_here: ContextVar[Place] = ContextVar("place")
_NOWHERE = Place()


def here() -> Place:
    return _here.get(_NOWHERE)


@contextmanager
def at(place: Place) -> Generator[None]:
    before = _here.set(place)
    try:
        yield
    finally:
        _here.reset(before)


@contextmanager
def in_run(run: str) -> Generator[None]:
    with at(Place(run)):
        yield


@contextmanager
def at_artifact(name: str) -> Generator[None]:
    """`name`: the artifact's path below the run folder."""
    round, _, stage = name.rpartition("/")
    with at(replace(here(), round=round, stage=stage)):
        yield


def thread_here(work: Callable[[], object], name: str) -> threading.Thread:
    """Start a thread, which ends with the process, at its starter's place."""
    thread = threading.Thread(target=copy_context().run, args=(work,), name=name, daemon=True)
    thread.start()
    return thread
