"""What only a GPU can show: `make test-gpu`. Everything here is marked and skipped without one."""

from pathlib import Path

import pytest
import torch

from tests.helpers import tiny

_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(missing)


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    return torch.device("cuda")


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose sizes a GPU's kernels take, and what it learns from."""
    room = tmp_path_factory.mktemp("room")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    tiny.save_student(room / "base", num_key_value_heads=2, **sizes)
    tiny.write_demonstrations(room / "demonstrations", range(24))
    tiny.write_pairs(room / "pairs", range(24))
    return room
