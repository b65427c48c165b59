"""How a run's log is followed over connections that break.

The fake replaces Ray's dashboard, which is not ours.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest
from ray.job_submission import JobStatus

from sirt_ray.errors import ResourceError
from sirt_ray.on_ray.submit import logs
from sirt_ray.on_ray.submit.logs import follow
from sirt_ray.on_ray.submit.submissions import Submission
from tests.helpers.submissions import submission


class FakeDashboard:
    """Shows a log in one connection after the other; all but the last break."""

    address = "http://head:8265"

    def __init__(self, *connections: Sequence[str], lost: int = 0) -> None:
        self.connections = list(connections)
        self.lost = lost
        self.requests = 0

    def submission(self, submission_id: str) -> Submission:
        self.requests += 1
        if self.requests <= self.lost:
            raise ResourceError("no answer")
        return submission(JobStatus.RUNNING if self.connections else JobStatus.SUCCEEDED)

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        for text in self.connections.pop(0):
            yield text
        if self.connections:
            raise aiohttp.ClientError("cut")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_POLL_SECONDS", 0.0)


@pytest.mark.parametrize("lost", [0, 2])
def test_a_broken_connection_repeats_nothing_and_loses_nothing(lost: int) -> None:
    log = FakeDashboard(["one\ntw"], [], ["one\n", "two\nthr"], ["one\ntwo\nthree\n"], lost=lost)
    assert "".join(follow(log, "id", lambda text: None)) == "one\ntwo\nthree\n"


def test_a_cluster_that_never_answers_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_LOST_SECONDS", 0.0)
    log = FakeDashboard(*[["one"]] * 10, lost=10)
    with pytest.raises(ResourceError, match="no answer"):
        list(follow(log, "id", lambda text: None))


class InterruptedDashboard(FakeDashboard):
    """Somebody presses Ctrl-C while nothing comes."""

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        yield "one"
        asyncio.get_running_loop().call_soon(self._press)
        await asyncio.Event().wait()

    def _press(self) -> None:
        raise KeyboardInterrupt


def test_following_ends_with_ctrl_c() -> None:
    lines = follow(InterruptedDashboard([]), "id", lambda text: None)
    assert next(lines) == "one"
    with pytest.raises(KeyboardInterrupt):
        next(lines)


class PendingDashboard(FakeDashboard):
    """The job is pending for the first two requests."""

    def submission(self, submission_id: str) -> Submission:
        found = super().submission(submission_id)
        return submission(JobStatus.PENDING) if self.requests <= 2 else found


def test_a_job_without_a_node_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_REPORT_EVERY_SECONDS", 0.0)
    reports: list[str] = []
    assert "".join(follow(PendingDashboard(["one\n"]), "id", reports.append)) == "one\n"
    assert len(reports) == 2 and all("resources.driver" in text for text in reports)


class VanishedDashboard(FakeDashboard):
    """The job has ended, and its log cannot be read: its node is gone."""

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        self.connections.append([])
        yield "one\n"
        raise RuntimeError("no agent")

    def submission(self, submission_id: str) -> Submission:
        return submission(JobStatus.FAILED)


def test_the_rest_of_a_log_whose_node_is_gone_is_given_up() -> None:
    log = VanishedDashboard()
    assert "".join(follow(log, "id", lambda text: None)) == "one\n"
    assert len(log.connections) == logs._LAST_TRIES
