"""A stop that comes while Ray starts, whose own start is stood in for."""

import signal
import sys
from pathlib import Path

import pytest

from sirt_ray.config.resources import ResourcesConfig
from sirt_ray.on_ray import cluster
from sirt_ray.on_ray.cluster import connected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_python_ignores_ends_the_start(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a handler raises while Python forks is ignored, as from `__del__` here."""

    class Forking:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        Forking()

    monkeypatch.setattr(cluster.ray, "init", init)
    # Tests that are started in the background ignore Ctrl-C, and it would not be heard.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), connected(None, ResourcesConfig(), tmp_path):
        pytest.fail("the start went on")
    assert signal.getsignal(signal.SIGTERM) is on_sigterm


def test_rays_own_exit_is_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(KeyboardInterrupt), connected(None, ResourcesConfig(), tmp_path):
        pytest.fail("the start went on")
