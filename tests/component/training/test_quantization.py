"""QLoRA without a GPU: the arguments for the libraries, and every refusal."""

import sys
from pathlib import Path

import pytest
import torch

from sirt_ray.config import load
from sirt_ray.config.training import LoraConfig, TuneConfig
from sirt_ray.errors import ConfigError, ResourceError
from sirt_ray.training.model import load_model, quantization_arguments, weights_key
from sirt_ray.training.model_errors import check_quantization
from sirt_ray.training.tasks import Source
from tests.helpers import tiny

JOB = """\
name: q
data: {train: [gsm8k], evaluate: [gsm8k]}
teacher: {model: big}
student: {model: small}
"""


@pytest.fixture
def bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name that can be found, and nothing else."""
    (tmp_path / "bitsandbytes.py").write_text("")
    described = tmp_path / "bitsandbytes-0.46.1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Name: bitsandbytes\nVersion: 0.46.1\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def no_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "bitsandbytes", None
    )  # The import system treats it as missing.


def test_double_quantised_nf4_is_requested(bitsandbytes: None) -> None:
    arguments = quantization_arguments(torch.bfloat16, torch.device("cuda", 1))
    assert arguments["device_map"] == {"": torch.device("cuda", 1)}
    settings = arguments["quantization_config"].to_dict()
    assert settings["load_in_4bit"] and settings["bnb_4bit_use_double_quant"]
    assert settings["bnb_4bit_quant_type"] == "nf4"
    assert settings["bnb_4bit_compute_dtype"] == "bfloat16"


def test_no_gpu_is_refused(bitsandbytes: None) -> None:
    with pytest.raises(ResourceError, match=r"needs a GPU for every training worker\. Provide"):
        check_quantization(on_gpu=False)
    check_quantization(on_gpu=True)


def test_no_bitsandbytes_is_refused(no_bitsandbytes: None) -> None:
    with pytest.raises(ResourceError, match=r"package bitsandbytes \(pip install"):
        check_quantization(on_gpu=True)


def test_loading_on_a_cpu_is_refused_but_exporting_reads_the_base_as_it_is(tmp_path: Path) -> None:
    source = Source(str(tiny.save_student(tmp_path)))
    config = TuneConfig(lora=LoraConfig(quantize="nf4"))
    with pytest.raises(ResourceError, match="a GPU for every training worker"):
        load_model(source, config, quantized_on=torch.device("cpu"))
    assert next(load_model(source, config).parameters()).dtype == torch.float32


@pytest.mark.parametrize("section", ["tune", "refine"])
def test_quantised_parameters_cannot_be_cut(tmp_path: Path, section: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    overrides = [f"{section}.lora.quantize=nf4", "resources.trainer.zero_stage=2"]
    assert load.load(file, overrides, ["gsm8k"]).quantizes
    with pytest.raises(ConfigError, match="Set zero_stage to 2 or below"):
        load.load(file, [*overrides, "resources.trainer.zero_stage=3"], ["gsm8k"])


def test_scales_of_quantised_parameters_are_part_of_the_key() -> None:
    """bitsandbytes has them in the state dictionary, not among the parameters."""

    class Packed(torch.nn.Linear):
        def __init__(self, scale: float) -> None:
            super().__init__(2, 2)
            torch.nn.init.ones_(self.weight)
            torch.nn.init.ones_(self.bias)
            self.scale = torch.tensor(scale)

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[f"{prefix}weight.absmax"] = self.scale

    assert weights_key(Packed(1.0)) == weights_key(Packed(1.0)) != weights_key(Packed(2.0))
