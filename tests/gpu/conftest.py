"""Tests that need a GPU: `make test-gpu`. All of them are marked, and skipped without one."""

from pathlib import Path

import pytest
import torch

from tests.helpers import tiny

_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(missing)


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    return torch.device("cuda")


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student of sizes that a GPU's kernels support, demonstrations and pairs."""
    assets = tmp_path_factory.mktemp("assets")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    tiny.save_student(assets / "base", num_key_value_heads=2, **sizes)
    tiny.write_demonstrations(assets / "demonstrations", range(24))
    tiny.write_pairs(assets / "pairs", range(24))
    return assets
