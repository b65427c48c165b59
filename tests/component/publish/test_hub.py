"""What the hub gets, and what it refuses."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from sirt_ray.cli import main
from tests.helpers.fake_hub_uploads import receiver
from tests.helpers.trained_runs import TrainedStages, export, write

TOKEN = "hf_write_0123456789"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("full"), TrainedStages())


def push(
    monkeypatch: pytest.MonkeyPatch, address: str, token: str | None, *arguments: object
) -> int:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return main.main(["push", *map(str, arguments)])


def files(folder: Path) -> Mapping[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_pushed_run_is_what_would_have_been_exported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    export(run, tmp_path / "out", "--data")
    with receiver({TOKEN: "me"}) as hub:
        assert push(monkeypatch, hub.address, TOKEN, run, "me/new", "--private", "--data") == 0
        assert hub.repositories["me/new"] == {"main": files(tmp_path / "out")}
        assert hub.private == {"me/new"}
        said = capsys.readouterr()
        assert f"{hub.address}/me/new" in said.out and TOKEN not in said.out + said.err

        assert push(monkeypatch, hub.address, TOKEN, run, "me/new") == 1
        assert "me/new exists already" in capsys.readouterr().err
        (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\nMine")
        pushed = push(monkeypatch, hub.address, TOKEN, tmp_path / "out", "me/new", "--revision=b")
        assert pushed == 0
        assert hub.repositories["me/new"]["b"] == files(tmp_path / "out")
        assert hub.repositories["me/new"]["main"]["README.md"] != b"---\nlicense: mit\n---\nMine"


@pytest.mark.parametrize(
    ("token", "repo", "status", "reason"),
    [
        (None, "me/new", 2, "there is no token.*hf auth login"),
        (TOKEN, "other/new", 1, "the token may not write to other/new"),
        ("hf_read_0123456789", "me/new", 1, "the token may not write to me/new"),
        ("hf_unknown_0123456789", "me/new", 1, "does not know the token"),
        (TOKEN, "new", 2, "new has no owner.*me/new"),
        (TOKEN, "me/a b", 2, "me/a b is not a valid name of a repository"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    token: str | None,
    repo: str,
    status: int,
    reason: str,
) -> None:
    with receiver({TOKEN: "me"}, readers=("hf_read_0123456789",)) as hub:
        folder = run / "round_01" / "student"
        assert push(monkeypatch, hub.address, token, folder, repo) == status
        assert hub.repositories == {}
    said = capsys.readouterr().err
    assert re.search(reason, said) and (token is None or token not in said)


def test_a_hub_that_cannot_be_reached_is_named_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with receiver({TOKEN: "me"}) as hub:
        address = hub.address
    assert push(monkeypatch, address, TOKEN, run / "round_01/student", "me/new") == 1
    assert "the hub cannot be reached" in capsys.readouterr().err


def test_an_adapter_on_a_local_base_is_not_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lora_run = write(tmp_path, TrainedStages(lora=(0, 1)))
    with receiver({TOKEN: "me"}) as hub:
        assert push(monkeypatch, hub.address, TOKEN, lora_run, "me/new") == 2
        assert hub.repositories == {}
    assert "--merge" in capsys.readouterr().err
