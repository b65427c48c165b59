"""The store at its edges: what is whole, what is the same, who holds the folder."""

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest

from sirt_ray.artifacts.locks import locked
from sirt_ray.artifacts.store import Store, canonical, fingerprint
from sirt_ray.errors import ArtifactError
from sirt_ray.storage.hashing import content_key


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    seen: list[bool] = []

    def build(out: Path) -> dict[str, int]:
        (out / "data").write_text("x")
        seen.append((tmp_path / "thing").exists())
        return {"rows": 1}

    made = Store(tmp_path).once("thing", {"seed": 1}, build)
    assert seen == [False]
    assert sorted(path.name for path in made.path.iterdir()) == ["data", "record.json"]
    record = json.loads((made.path / "record.json").read_text())
    assert record["counts"] == {"rows": 1}
    assert record["inputs"] == {"seed": 1}
    assert record["versions"]["python"].startswith("3.")


def test_a_kill_between_record_and_rename_loses_nothing(tmp_path: Path) -> None:
    Store(tmp_path).once("thing", {"seed": 1}, lambda out: {})
    final, partial = tmp_path / "thing", tmp_path / ".thing.partial"
    final.rename(partial)
    (partial / ".inputs.json").write_text('{"seed": 1}')

    def never(out: Path) -> dict[str, int]:
        raise AssertionError("built twice")

    Store(tmp_path).once("thing", {"seed": 1}, never)
    assert final.exists() and not partial.exists()


def test_what_was_begun_with_other_settings_is_never_built_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / ".thing.partial"
    partial.mkdir()
    (partial / ".inputs.json").write_text('{"seed": 1}')
    (partial / "data").write_text("of seed 1")
    with monkeypatch.context() as stubborn:  # A disk that deletes nothing.
        stubborn.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(ArtifactError, match="cannot be deleted"):
            Store(tmp_path).once("thing", {"seed": 2}, lambda out: {})
    made = Store(tmp_path).once("thing", {"seed": 2}, lambda out: {})
    assert [path.name for path in made.path.iterdir()] == ["record.json"]


def test_an_artifact_depends_on_the_fingerprints_below_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    below = store.once("below", {"seed": 1}, lambda out: {})
    above = store.once("above", {"from": below}, lambda out: {})
    other = Store(tmp_path / "other")
    elsewhere = other.once("below", {"seed": 1}, lambda out: {})
    assert other.once("above", {"from": elsewhere}, lambda out: {}).fingerprint == above.fingerprint


def test_order_of_keys_and_kind_of_sequence_do_not_matter_but_values_do() -> None:
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


def test_a_value_without_a_stable_form_is_refused() -> None:
    with pytest.raises(TypeError, match="stable form"):
        canonical({"build": print})


def test_content_key_knows_content_and_names_but_not_places(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "model.safetensors").write_bytes(b"weights")
    assert content_key(tmp_path / "a") == content_key(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"Weights")
    assert content_key(tmp_path / "a") != content_key(tmp_path / "b")


def test_a_large_file_is_known_by_its_size_and_both_ends(tmp_path: Path) -> None:
    file = tmp_path / "large"
    content = bytearray(3 << 20)
    keys = set[str]()
    for position in (0, len(content) - 1):
        content[position] = 1
        file.write_bytes(content)
        keys.add(content_key(tmp_path, sampled_above_bytes=1 << 20))
    assert len(keys) == 2


def _try_to_lock(root: Path, answer: "multiprocessing.Queue[str]") -> None:
    try:
        with locked(root):
            answer.put("locked")
    except ArtifactError as error:
        answer.put(str(error))


def test_a_second_driver_is_refused_and_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answer: multiprocessing.Queue[str] = context.Queue()
    with locked(tmp_path):
        second = context.Process(target=_try_to_lock, args=(tmp_path, answer))
        second.start()
        assert "another driver" in answer.get(timeout=30)
        second.join()
    with locked(tmp_path):
        pass
