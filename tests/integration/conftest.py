"""What integration tests share, and which of them share a worker of xdist."""

from pathlib import Path

import pytest

from tests.helpers.small_run import SMALL, run

FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares engines: with `--dist loadgroup`, each fixture is made once.

    Tests of one module share its fixtures; those of several modules share the finished run.
    """
    for item in items:
        if item.path.is_relative_to(FOLDER):
            shared = "finished_run" in getattr(item, "fixturenames", ())
            group = "finished_run" if shared else item.path.relative_to(FOLDER).as_posix()
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished small run, for all tests that look at one; none changes it."""
    output = tmp_path_factory.mktemp("finished")
    run(output, **SMALL)
    return output / "quickstart"
