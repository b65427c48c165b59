"""Files that came from somewhere run no code: job files, configurations, weights. What a job may
name and the user has to allow is in `test_own_tasks.py`."""

import ast
import functools
import json
import shutil
from pathlib import Path

import pytest
import torch

from sirt_ray.config import load as jobfile
from sirt_ray.config import study
from sirt_ray.config.resources import EngineConfig
from sirt_ray.config.training import TuneConfig
from sirt_ray.driver.checks import check_model
from sirt_ray.errors import ConfigError, ModelError
from sirt_ray.on_ray.engine.options import engine_kwargs
from sirt_ray.quickstart import assets
from sirt_ray.training.model import load_model, load_tokenizer
from sirt_ray.training.tasks import Source
from tests.helpers.paths import ROOT

PACKAGE = ROOT / "sirt_ray"


def touching(path: Path) -> str:
    """Python that leaves a file behind where it is run."""
    return f"import pathlib; pathlib.Path({str(path)!r}).touch()"


class TestJobFiles:
    @pytest.fixture(params=["python/object/apply:exec", "python/object/new:exec"])
    def hostile(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        code = touching(tmp_path / "ran").replace("'", "''")
        return f"!!{request.param} ['{code}']"

    def test_a_tag_that_calls_python_is_refused(self, hostile: str, tmp_path: Path) -> None:
        path = tmp_path / "job.yaml"
        for load, text in ((jobfile.load, f"name: {hostile}"), (study.load, f"study: {hostile}")):
            path.write_text(text)
            with pytest.raises(ConfigError, match="no valid YAML"):
                load(path, [], ["gsm8k"])
        assert not (tmp_path / "ran").exists()

    def test_so_is_one_in_an_override(self, hostile: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no valid YAML"):
            jobfile.set_in({}, f"name={hostile}")
        assert not (tmp_path / "ran").exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(assets.resolve("quickstart:student"), folder)
    return folder


class TestCodeInAModelsFolder:
    @pytest.fixture
    def model(self, model: Path, tmp_path: Path) -> Path:
        """A model that brings its own classes, of a kind that `transformers` does not know."""
        code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
        for name, own in (
            ("config.json", {"auto_map": code, "model_type": "own"}),
            (
                "tokenizer_config.json",
                {"auto_map": {"AutoTokenizer": ["own.T", None]}, "tokenizer_class": "T"},
            ),
        ):
            settings = json.loads((model / name).read_text())
            (model / name).write_text(json.dumps(settings | own))
        (model / "own.py").write_text(touching(tmp_path / "ran"))
        return model

    def test_a_check_refuses_it_and_runs_nothing(self, model: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"student\.model.*cannot be loaded"):
            check_model("student.model", str(model))
        assert not (tmp_path / "ran").exists()

    def test_so_does_the_trainer(self, model: Path, tmp_path: Path) -> None:
        for load in (lambda s: load_model(s, TuneConfig()), load_tokenizer):
            with pytest.raises(ModelError, match="cannot be loaded"):
                load(Source(str(model)))
        assert not (tmp_path / "ran").exists()

    def test_an_engine_is_told_so(self) -> None:
        for gpu in (False, True):
            kwargs = engine_kwargs(EngineConfig(), gpu)
            assert kwargs["trust_remote_code"] is False
            assert kwargs["load_format"] == "safetensors"


class TestPickledWeights:
    @pytest.fixture
    def model(self, model: Path, tmp_path: Path) -> Path:
        (model / "model.safetensors").unlink()
        ran = tmp_path / "ran"

        class Hostile:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return exec, (touching(ran),)

        torch.save({"weight": Hostile()}, model / "pytorch_model.bin")
        return model

    def test_the_file_would_run_code(self, model: Path, tmp_path: Path) -> None:
        torch.load(model / "pytorch_model.bin", weights_only=False)
        assert (tmp_path / "ran").exists()

    def test_a_check_finds_no_weights(self, model: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"no weights \(\*\.safetensors\)"):
            check_model("teacher.model", str(model))
        assert not (tmp_path / "ran").exists()

    def test_the_trainer_refuses_them_also_where_they_are_harmless(self, model: Path) -> None:
        torch.save({"weight": torch.zeros(1)}, model / "pytorch_model.bin")
        with pytest.raises(ModelError, match="safetensors"):
            load_model(Source(str(model)), TuneConfig())


@functools.cache
def calls_in_the_package() -> dict[str, tuple[str, str]]:
    """Where -> the function's name and the whole call, as they are written."""
    found: dict[str, tuple[str, str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                place = f"{path.relative_to(PACKAGE)}:{node.lineno}:{node.col_offset}"
                found[place] = ast.unparse(node.func), ast.unparse(node)
    return found


def calls(*names: str) -> dict[str, str]:
    """Calls of these functions, as whatever they are imported."""
    named = [f".{name}" for name in names]
    return {
        place: call
        for place, (name, call) in calls_in_the_package().items()
        if f".{name}".endswith(tuple(named))
    }


_EXECUTES = ("eval", "exec")


class TestEveryPlaceInTheCode:
    def test_trusts_no_code_of_a_model(self) -> None:
        found = calls("from_pretrained", "from_config")
        assert len(found) >= 6
        assert [p for p, call in found.items() if "trust_remote_code=False" not in call] == []

    def test_reads_weights_from_safetensors(self) -> None:
        found = calls("AutoModelForCausalLM.from_pretrained")
        assert found
        assert [p for p, call in found.items() if "use_safetensors=True" not in call] == []

    def test_loads_no_pickle_and_evaluates_no_text(self) -> None:
        loads = calls("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "torch.load")
        assert [p for p, call in loads.items() if "weights_only=True" not in call] == []
        named = calls_in_the_package().items()
        executed = {place.partition(":")[0] for place, (name, _) in named if name in _EXECUTES}
        # What a job's own file holds, and only where `--allow-code` allows it.
        assert executed == {"user_code.py"}
