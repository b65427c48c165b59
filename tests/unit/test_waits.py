"""No wait is silent: what is said, when, and from where."""

import logging
import threading
from collections.abc import Iterator

import pytest

from sirt_ray import logs as waits
from sirt_ray.logs import Wait, at_artifact, attached_handler, in_run, waiting

WHAT = "godot"


class Clock:
    """Stands for `time.monotonic`: a test says what time it is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Ears(logging.Handler):
    """Hears of this wait; whatever other tests have left waiting speaks in the same process."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what
        self.records: list[logging.LogRecord] = []
        self.heard = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.__dict__["fields"].get("what") == self._what:
            self.records.append(record)
            self.heard.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waits, "time", clock)
    return clock


def said_at(clock: Clock, wait: Wait, seconds: int) -> list[int]:
    """The seconds from now on, of so many, at which the wait is told of."""
    began, ears = clock.now, Ears(WHAT)
    told: list[int] = []
    with attached_handler(ears):
        for second in range(seconds):
            clock.now = began + second
            wait.log_if_due()
            if ears.records:
                told.append(second)
                ears.records.clear()
    return told


def test_it_speaks_after_half_a_minute_and_then_less_and_less_often(clock: Clock) -> None:
    assert said_at(clock, Wait(WHAT), 3000) == [30, 60, 120, 240, 480, 960, 1560, 2160, 2760]


def test_what_moves_starts_anew(clock: Clock) -> None:
    wait = Wait(WHAT)
    clock.now += 29
    wait.moved()
    assert said_at(clock, wait, 29) == []


def test_what_always_takes_a_minute_is_late_after_three(clock: Clock) -> None:
    wait = Wait(WHAT)
    clock.now += 60
    wait.moved()
    assert said_at(clock, wait, 200) == [180]


def test_nothing_is_silent_for_more_than_ten_minutes(clock: Clock) -> None:
    def blocks() -> Iterator[int]:
        clock.now += 1500
        yield 0

    wait = Wait(WHAT)
    assert list(wait.each(blocks())) == [0]
    assert said_at(clock, wait, 700) == [600]


def test_a_slow_start_is_no_measure_for_what_follows(clock: Clock) -> None:
    wait = Wait(WHAT)
    clock.now += 500
    wait.moved(WHAT)
    assert said_at(clock, wait, 60) == [30]


def test_it_says_what_is_missing(clock: Clock) -> None:
    wait = Wait("the engine", lambda: "it needs 1 GPU; free now: nothing")
    clock.now += 40
    assert wait.text == "waiting for the engine since 40 s: it needs 1 GPU; free now: nothing"


def test_a_look_that_fails_does_not_end_the_wait(clock: Clock) -> None:
    def unreachable() -> str:
        raise ConnectionError

    clock.now += 40
    wait = Wait("the engine", unreachable)
    assert wait.text == "waiting for the engine since 0 s: why is not known (ConnectionError)"


def test_a_limit_is_over_when_it_has_passed(clock: Clock) -> None:
    wait, patient = Wait("the engine", limit_s=100.0), Wait("the engine")
    clock.now += 100
    assert not wait.over
    clock.now += 1
    assert wait.over and not patient.over


def test_a_thread_that_is_stuck_is_spoken_for_with_its_place() -> None:
    ears = Ears(WHAT)
    with (
        attached_handler(ears),
        in_run("mine"),
        at_artifact("round_01/samples"),
        waiting(WHAT, first_s=0.001),
    ):
        assert ears.heard.wait(timeout=10)
    told = ears.records[0].__dict__
    assert (told["run"], told["round"], told["stage"]) == ("mine", "round_01", "samples")
    assert told["event"] == "waiting" and told["fields"]["what"] == WHAT
    assert told["msg"].startswith(f"waiting for {WHAT} since ")
