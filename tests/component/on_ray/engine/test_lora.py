"""What an adapter's folder says, and which engine can take it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from sirt_ray.config.resources import EngineConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ModelError
from sirt_ray.on_ray.engine.lora import Adapter, adapter_of, check_adapter, same_weights
from sirt_ray.on_ray.engine.options import engine_kwargs


def save_config(folder: Path, **changed: Any) -> Policy:
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "/models/base"} | changed
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"layer": torch.zeros(1)}, folder / "adapter_model.safetensors")
    return Policy("round_01", str(folder))


def save_weights(folder: Path, *values: float) -> Policy:
    folder.mkdir()
    save_file({"layer": torch.tensor(values)}, folder / "model.safetensors")
    return Policy("base", str(folder))


class TestReading:
    def test_an_adapter_names_its_base_and_rank(self, tmp_path: Path) -> None:
        adapter = adapter_of(save_config(tmp_path, revision="abc"))
        assert adapter == Adapter(tmp_path, Policy("base", "/models/base", "abc"), 8)

    def test_a_whole_model_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "adapter").mkdir()
        save_config(tmp_path / "adapter")
        assert adapter_of(Policy("round_01", str(tmp_path))) is None

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"peft_type": "IA3"}, "this is IA3"),
            ({"alpha_pattern": {"q_proj": 4}}, "one.* scale"),
            ({"rank_pattern": {"q_proj": 64}}, "one rank"),
            ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ],
    )
    def test_what_the_engine_would_get_wrong_is_refused(
        self, tmp_path: Path, changed: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(ModelError, match=reason):
            adapter_of(save_config(tmp_path, **changed))

    def test_pickled_weights_are_not_read(self, tmp_path: Path) -> None:
        policy = save_config(tmp_path)
        (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
        with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
            adapter_of(policy)

    @pytest.mark.parametrize("text", ["", "[]", "{}"])
    def test_a_broken_configuration_is_named(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match=r"adapter_config\.json is not what PEFT writes"):
            adapter_of(Policy("round_01", str(tmp_path)))


class TestSameWeights:
    def test_the_same_name_needs_no_look_at_the_weights(self) -> None:
        assert same_weights(Policy("a", "team/model", "abc"), Policy("b", "team/model", "abc"))

    def test_the_same_folder_by_another_way(self, tmp_path: Path) -> None:
        one = save_weights(tmp_path / "one", 1.0)
        (tmp_path / "link").symlink_to(tmp_path / "one")
        assert same_weights(one, Policy("base", str(tmp_path / "link")))

    def test_a_copy(self, tmp_path: Path) -> None:
        one = save_weights(tmp_path / "one", 1.0, 2.0)
        shutil.copytree(tmp_path / "one", tmp_path / "copy")
        (tmp_path / "copy" / "README.md").touch()
        assert same_weights(one, Policy("base", str(tmp_path / "copy")))

    def test_one_number_differs(self, tmp_path: Path) -> None:
        one = save_weights(tmp_path / "one", 1.0, 2.0, 3.0)
        other = save_weights(tmp_path / "other", 1.0, 2.5, 3.0)
        assert not same_weights(one, other)

    def test_folders_without_weights_are_not_the_same(self, tmp_path: Path) -> None:
        folders = [tmp_path / "one", tmp_path / "other"]
        for folder in folders:
            folder.mkdir()
        one, other = (Policy("base", str(folder)) for folder in folders)
        assert not same_weights(one, other)


class TestRoom:
    def test_there_is_room_for_the_rank_that_is_set(self) -> None:
        kwargs = engine_kwargs(EngineConfig(max_lora_rank=9), gpu=False)
        assert (kwargs["enable_lora"], kwargs["max_loras"]) == (True, 1)
        assert kwargs["max_lora_rank"] == 16

    def test_without_it_the_engine_is_one_without_lora(self) -> None:
        assert not {"enable_lora", "max_lora_rank"} & engine_kwargs(EngineConfig(), gpu=True).keys()

    def test_more_than_the_engine_can_ever_take(self) -> None:
        with pytest.raises(ValidationError, match="max_lora_rank"):
            EngineConfig(max_lora_rank=513)

    def test_an_engine_without_lora_says_what_to_set(self, tmp_path: Path) -> None:
        base = Policy("base", "/models/base")
        with pytest.raises(ModelError, match=r"without LoRA.*max_lora_rank: 8"):
            check_adapter(Adapter(tmp_path, base, 8), base, None)
