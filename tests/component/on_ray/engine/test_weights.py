"""Where weights lie on a node, with a server on this machine that speaks S3's protocol."""

import glob
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants

from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ModelError
from sirt_ray.on_ray.engine.weights import engine_path, local_folder
from tests.helpers.s3_server import ALWAYS_ALLOWED, KEY, SECRET, allow, environment, file_system


class Bucket:
    """What users and trainings put into object storage."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._store = file_system(endpoint)

    def put(self, folder: str, **contents: str) -> None:
        """Files below `folder`; `sub__name` is the file `name.json` in a folder `sub`."""
        self._store.create_dir(folder.split("/")[0])
        for name, content in contents.items():
            path = f"{folder}/{name.replace('__', '/')}.json"
            with self._store.open_output_stream(path) as stream:
                stream.write(content.encode())

    def allow(self, requests: str) -> None:
        """So many more requests; then those who may are asked for, and nobody may."""
        allow(self._endpoint, requests)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket(s3_endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(s3_endpoint)
    yield bucket
    bucket.allow(ALWAYS_ALLOWED)


def policy(folder: str, version: str = "round_01") -> Policy:
    return Policy(version, f"s3://{folder}")


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def copies(cache: Path) -> set[Path]:
    return {path for path in cache.glob("weights/*/*") if path.name != ".lock"}


class TestFolders:
    def test_a_folder_is_where_it_is(self, tmp_path: Path) -> None:
        assert local_folder(Policy("base", str(tmp_path))) == tmp_path
        assert local_folder(Policy("base", f"file://{tmp_path}")) == tmp_path

    def test_a_folder_that_this_node_does_not_see_is_an_error(self, tmp_path: Path) -> None:
        for path in (tmp_path / "gone", f"file://{tmp_path}/gone"):
            with pytest.raises(ModelError, match=r"no folder .*gone on this node"):
                local_folder(Policy("base", str(path)))


class TestObjectStorage:
    def test_everything_below_the_folder_is_fetched_once(self, bucket: Bucket, cache: Path) -> None:
        bucket.put("models/tiny", config="{}", adapter__weights="1")
        bucket.put("models/tiny-too", config="another model")
        folder = local_folder(policy("models/tiny"))
        assert files(folder) == {"config.json": "{}", "adapter/weights.json": "1"}
        inode = (folder / "config.json").stat().st_ino
        assert local_folder(policy("models/tiny/")) != folder
        assert local_folder(policy("models/tiny")) == folder
        assert (folder / "config.json").stat().st_ino == inode
        assert cache in folder.parents

    def test_processes_that_want_it_at_the_same_time_get_the_same_copy(
        self, bucket: Bucket, cache: Path
    ) -> None:
        bucket.put("models/shared", config="{}", weights="w" * 10_000)
        with ThreadPoolExecutor(4) as pool:
            folders = set(pool.map(local_folder, [policy("models/shared")] * 4))
        assert folders == copies(cache)
        assert len(folders) == 1

    def test_other_content_at_the_same_address_is_another_folder(self, bucket: Bucket) -> None:
        bucket.put("models/overwritten", config="old", weights="1")
        old = local_folder(policy("models/overwritten"))
        bucket.put("models/overwritten", config="new!")
        new = local_folder(policy("models/overwritten"))
        assert files(old) == {"config.json": "old", "weights.json": "1"}
        assert files(new) == {"config.json": "new!", "weights.json": "1"}

    def test_a_fetch_that_fails_in_the_middle_leaves_nothing(
        self, bucket: Bucket, cache: Path
    ) -> None:
        """At each of the requests that it is made of."""
        bucket.put("models/cut", config="{}", weights="w" * 10_000)
        failures = 0
        while True:
            bucket.allow(str(failures))
            try:
                folder = local_folder(policy("models/cut"))
                break
            except ModelError:
                failures += 1
                assert copies(cache) == set()
        assert failures > len(files(folder)) == 2

    def test_what_a_killed_process_left_is_not_taken_for_whole(
        self, bucket: Bucket, cache: Path
    ) -> None:
        bucket.put("models/killed", config="{}", weights="w" * 10_000)
        folder = local_folder(policy("models/killed"))
        folder.rename(folder.with_name(f".{folder.name}.partial"))
        (folder.with_name(f".{folder.name}.partial") / "left.json").touch()
        assert set(files(local_folder(policy("models/killed")))) == {"config.json", "weights.json"}
        assert copies(cache) == {folder}

    def test_a_copy_that_lost_a_part_is_fetched_again(self, bucket: Bucket) -> None:
        bucket.put("models/cleared", config="{}", weights="w" * 10_000)
        folder = local_folder(policy("models/cleared"))
        whole = files(folder)
        (folder / "config.json").unlink()
        assert files(local_folder(policy("models/cleared"))) == whole
        (folder / "weights.json").write_text("w")
        assert files(local_folder(policy("models/cleared"))) == whole

    def test_the_versions_that_were_used_last_are_kept(self, bucket: Bucket, cache: Path) -> None:
        bucket.put("models/base", config="base")
        base = local_folder(policy("models/base", "base"))
        rounds = [f"round_{number:02d}" for number in range(6)]
        for version in rounds:
            bucket.put(f"runs/demo/{version}/student", config=version)
            local_folder(policy(f"runs/demo/{version}/student", version))
            local_folder(policy("runs/demo/round_00/student", "round_00"))
        students = {files(folder)["config.json"] for folder in copies(cache) - {base}}
        assert students == {"round_00", "round_03", "round_04", "round_05"}
        assert files(base) == {"config.json": "base"}


class TestRefusals:
    @pytest.mark.parametrize("folder", ["models/no-such", "no-such-bucket/model"])
    def test_nothing_there(self, bucket: Bucket, cache: Path, folder: str) -> None:
        bucket.put("models/one", config="{}")
        with pytest.raises(ModelError, match=rf"{folder}.*(?i:address)"):
            local_folder(policy(folder))
        assert copies(cache) == set()

    def test_no_model_there(self, bucket: Bucket, cache: Path) -> None:
        bucket.put("models/all/one", config="{}")
        with pytest.raises(ModelError, match="no model in s3://models/all"):
            local_folder(policy("models/all"))
        assert copies(cache) == set()

    def test_no_permission(self, bucket: Bucket) -> None:
        bucket.put("models/closed", config="{}")
        bucket.allow("0")
        with pytest.raises(ModelError, match=r"models/closed .*(?i:access).*credentials"):
            local_folder(policy("models/closed"))

    def test_what_a_store_repeats_of_a_secret_is_not_shown(
        self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """This one says that the specified bucket does not exist."""
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "specified")
        with pytest.raises(ModelError, match=r"\*\*\* bucket") as raised:
            local_folder(policy("no-such-bucket/model"))
        assert "specified" not in str(raised.value)

    @pytest.mark.parametrize(
        "address",
        [f"s3://{KEY}:{SECRET}@models/one", f"s3://models/one?secret_key={SECRET}"],
    )
    def test_credentials_in_the_address_are_refused_and_not_repeated(self, address: str) -> None:
        with pytest.raises(ModelError, match="environment") as raised:
            local_folder(Policy("base", address))
        assert KEY not in str(raised.value)
        assert SECRET not in str(raised.value)

    @pytest.mark.parametrize("address", ["ftp://models/one", "s3://models/a b"])
    def test_an_address_that_is_none(self, address: str) -> None:
        with pytest.raises(ModelError, match=re.escape(address)):
            local_folder(Policy("base", address))


class TestWildcards:
    """vLLM looks for weights by a pattern that begins with the folder's name."""

    @pytest.mark.parametrize("name", ["r [1]", "what?", "*", "[a-z] *?"])
    def test_the_engine_gets_a_path_without_them(self, tmp_path: Path, name: str) -> None:
        other = tmp_path / "r 1"
        for folder in (other, tmp_path / name):
            folder.mkdir()
            (folder / "model.safetensors").write_text(folder.name)
        path = engine_path(Policy("round_01", str(tmp_path / name)))
        (found,) = glob.glob(f"{path}/*.safetensors")
        assert Path(found).read_text() == name
        assert engine_path(Policy("round_02", str(tmp_path / name))) == path

    @pytest.mark.parametrize("name", ["plain", "with space", "Umläut", "a{b}~$!&", "]"])
    def test_other_folders_are_taken_as_they_are(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).mkdir()
        assert engine_path(Policy("round_01", str(tmp_path / name))) == str(tmp_path / name)

    def test_a_model_in_a_cache_with_one_is_fetched_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = tmp_path / "[hub]"
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        snapshot = cache / "models--org--open" / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (cache / "models--org--open" / "refs").mkdir()
        (cache / "models--org--open" / "refs" / "main").write_text("0" * 40)
        (snapshot / "model.safetensors").write_text("weights")
        (found,) = glob.glob(f"{engine_path(Policy('baseline', 'org/open'))}/*.safetensors")
        assert Path(found).read_text() == "weights"
