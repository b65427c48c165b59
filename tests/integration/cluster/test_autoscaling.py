"""A cluster that grows while an engine wants room, and shrinks when it is gone.

Ray's own autoscaler (v2) asks its own fake provider for machines: each is a raylet on this one.
The fake stands for the cloud, which we don't own. This is part of `make test-cluster`.
"""

import json
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.nodes import plain_environment
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_port
from tests.helpers.sleeping_engine import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""The node id by which the fake provider knows the head."""
_LISTS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
)
"""What the autoscaler wants to be there, though it is empty."""
RAY = Path(sys.executable).with_name("ray")


def provider_config(address: str) -> dict[str, Any]:
    return {
        "cluster_name": "growing",
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
            "head_node_id": HEAD,
            "launch_multiple": True,
        },
        "max_workers": 1,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
            "sampler": {
                "resources": {"CPU": 2, "sampler": 1, "object_store_memory": 150 << 20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 1,
            },
        },
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in _LISTS},
        "file_mounts_sync_continuously": False,
    }


class Growing:
    """A head, and whatever nodes its autoscaler starts."""

    def __init__(self, folder: Path, log: Path) -> None:
        # It stands in the provider's file before the head listens there.
        self.address = f"127.0.0.1:{free_port()}"
        config = folder / "provider.yaml"
        config.write_text(json.dumps(provider_config(self.address)))
        self.environment = {
            **plain_environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        self._folder = folder
        with log.open("w") as file:
            self._head = subprocess.Popen(
                [
                    *(str(RAY), "start", "--head", "--block"),
                    f"--port={self.address.rpartition(':')[2]}",
                    "--node-ip-address=127.0.0.1",
                    f"--temp-dir={folder}",
                    f"--autoscaling-config={config}",
                    "--num-cpus=2",
                    "--include-dashboard=false",
                    "--dashboard-agent-listen-port=0",
                    f"--object-store-memory={150 << 20}",
                    "--disable-usage-stats",
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **self.environment,
                    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                    "RAY_FAKE_CLUSTER": "1",
                    "RAY_enable_autoscaler_v2": "1",
                    "RAY_CLOUD_INSTANCE_ID": HEAD,
                    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
                },
            )

    def processes(self) -> list[psutil.Process]:
        """All of the cluster that are alive: each is told its folder."""
        return [
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if any(str(self._folder) in part for part in process.info["cmdline"] or ())
        ]

    def nodes(self) -> int:
        return sum(process.info["name"] == "raylet" for process in self.processes())

    def is_up(self) -> bool:
        assert self._head.poll() is None, "the head ended"
        return self.nodes() == 1

    def stop(self) -> None:
        """End the head, then what the autoscaler has started, which would look for it for a while,
        with its workers."""
        ours = self.processes()
        ours += [child for one in ours for child in one.children(recursive=True)]
        self._head.send_signal(signal.SIGTERM)
        try:
            self._head.wait(30)
        except subprocess.TimeoutExpired:
            self._head.kill()
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Growing]:
    # Sockets lie there, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    cluster = Growing(folder, tmp_path_factory.mktemp("growing") / "log")
    try:
        wait_until(cluster.is_up, 90, "the head")
        yield cluster
    finally:
        cluster.stop()


def test_sampling_brings_a_node_which_goes_when_it_ends(growing: Growing, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    command = subprocess.Popen(
        [
            *(sys.executable, "-m", "sirt_ray", "evaluate", "quickstart:student"),
            *("--benchmarks", "word_problems", "--num", "48", "--prompts", "cot"),
            *("--set", "engine.custom_resources={sampler: 1}"),
            *("--address", growing.address, "--out", str(out)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**growing.environment, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
    )
    try:
        wait_until(lambda: growing.nodes() == 2 or command.poll() is not None, 120, "a node")
        told, _ = command.communicate(timeout=300)
    finally:
        command.kill()
    assert command.returncode == 0, told
    record = json.loads(next(out.glob("**/evaluation/record.json")).read_text())
    assert record["counts"], told
    wait_until(lambda: growing.nodes() == 1, 90, "the end of the second node")
