"""What the package is installed and checked by: locked versions, workflows, citation."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.helpers.cluster_rules import ROOT, pyproject

LOCKS = {name: (ROOT / f"constraints-{name}.txt").read_text() for name in ("cpu", "gpu", "dev")}


def pins(lock: str) -> dict[str, list[str]]:
    """Package -> its pinned versions, for an environment each."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([\w.+!]+)", LOCKS[lock], re.MULTILINE):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


def asked(*requirements: str | dict[str, str]) -> list[Requirement]:
    return [Requirement(text) for text in requirements if isinstance(text, str)]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes_and_no_address_is_in_a_lock(lock: str) -> None:
    lines = [line for line in LOCKS[lock].splitlines() if not line.lstrip().startswith("#")]
    assert not [line for line in lines if "://" in line or line.startswith(("-", "/"))]
    for line, after in pairwise([*lines, ""]):
        assert not re.match(r"[\w.-]+==", line) or after.startswith("    --hash=sha256:")


@pytest.mark.parametrize("lock", ["cpu", "gpu"])
def test_what_the_package_requires_is_locked(lock: str) -> None:
    project, locked = pyproject()["project"], pins(lock)
    needed = asked(*project["dependencies"], *project["optional-dependencies"][lock])
    for one in needed:
        if (lock, one.name) == ("cpu", "torch"):  # of a source of its own
            continue
        (version,) = locked[canonicalize_name(one.name)]
        assert one.specifier.contains(version), one


def test_what_developers_need_is_locked_and_fits_what_runs_on_cpu() -> None:
    groups, locked, cpu = pyproject()["dependency-groups"], pins("dev"), pins("cpu")
    for one in asked(
        *(text for name in ("test", "lint", "docs", "bench") for text in groups[name])
    ):
        assert one.specifier.contains(locked[canonicalize_name(one.name)][0]), one
    assert {name: cpu[name] for name in locked.keys() & cpu.keys()} == {
        name: locked[name] for name in locked.keys() & cpu.keys()
    }


@pytest.mark.parametrize("lock", ["cpu", "dev"])
def test_nothing_of_cuda_is_installed_on_cpu(lock: str) -> None:
    cuda = re.compile(r"^(torch|torchvision|torchaudio|torchcodec|triton|vllm)$|^(nvidia|cuda)-")
    assert not [name for name in pins(lock) if cuda.search(name)]


def test_the_cpu_build_of_torch_is_the_version_that_the_package_requires() -> None:
    (torch,) = re.findall(r"^TORCH := (torch==[\d.]+)\+cpu$", (ROOT / "Makefile").read_text(), re.M)
    assert torch in pyproject()["project"]["dependencies"]


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_a_workflow_calls_targets_of_the_makefile_and_may_only_read(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        uses = [step["uses"] for step in job["steps"] if "uses" in step]
        assert uses and all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action) for action in uses)
        runs = [step["run"] for step in job["steps"] if "run" in step]
        assert runs and all(re.fullmatch(r"make ([\w-]+)", run) for run in runs)
        assert {run.removeprefix("make ") for run in runs} <= targets
        for python in job.get("strategy", {}).get("matrix", {}).get("python-version", ()):
            assert SpecifierSet(pyproject()["project"]["requires-python"]).contains(python)


def test_hooks_of_a_commit_are_the_locked_tools() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    revisions = {hook["id"]: repo.get("rev") for repo in config["repos"] for hook in repo["hooks"]}
    locked = pins("dev")
    assert revisions["ruff-check"] == revisions["ruff-format"] == f"v{locked['ruff'][0]}"
    assert revisions["codespell"] == f"v{locked['codespell'][0]}"


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = pyproject()["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
    (paper,) = citation["references"]
    assert (paper["start"], paper["end"], paper["year"]) == (2325, 2347, 2024)
    assert paper["url"] == project["urls"]["Paper"]
