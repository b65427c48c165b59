"""What integration tests share."""

from pathlib import Path

import pytest

from tests.helpers.small_run import SMALL, run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished small run, for all tests that look at one; none changes it."""
    output = tmp_path_factory.mktemp("finished")
    run(output, **SMALL)
    return output / "quickstart"
