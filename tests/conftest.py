"""Fixtures of several kinds of tests: real rows, if they are available, and one local Ray."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Threads that spin at barriers take the cores from what else a test has started.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

gc.disable()  # While modules are imported, there is nothing to collect.


def pytest_collection_finish() -> None:
    """Exclude the imported modules from garbage collection: there are so many that it is slow."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Print how to repeat the order of the tests, where one of them failed."""
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        seed = config.getoption("random_order_seed").removeprefix("default:")
        terminalreporter.write_line(f"The same order again: --random-order-seed={seed}")


@pytest.fixture(scope="session")
def assets() -> Path:
    """Return the folder with what the repository does not ship: real benchmark rows
    (`data/<benchmark>/<split>.parquet`) and KubeRay's schemas (`schemas/`)."""
    folder = os.environ.get("SIRT_TEST_ASSETS")
    if not folder:
        pytest.skip("SIRT_TEST_ASSETS names no folder with real benchmark rows and schemas")
    return Path(folder)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start one local Ray for all tests that need one, with 4 logical CPUs on any machine."""
    import ray
    from ray.data import DataContext

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()
