"""What is said of engines that cannot start."""

import json
from pathlib import Path

import pytest

from sirt_ray.config.resources import EngineConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ModelError, ResourceError
from sirt_ray.on_ray.engine.server import ModelServer
from tests.helpers.tiny import save_talker

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def test_a_model_that_cannot_be_served_is_said_with_the_engines_reason(
    ray_cluster: None, tmp_path: Path
) -> None:
    """One failing start for each place where an engine may fail: before its process, and in it."""
    unknown, broken = tmp_path / "unknown", tmp_path / "broken"
    save_talker(unknown, 0, tied=True)
    config = json.loads((unknown / "config.json").read_text())
    config |= {"architectures": ["NoSuchForCausalLM"], "model_type": "no_such"}
    (unknown / "config.json").write_text(json.dumps(config))
    save_talker(broken, 1)
    (broken / "model.safetensors").write_bytes(b"these are no weights")

    def deploy(role: str, path: Path) -> ModelServer:
        policy, engine = Policy("one", str(path)), EngineConfig(num_cpus=0.5)
        return ModelServer.deploy(role, policy, engine, run="failing", pointers=tmp_path)

    servers = [deploy("teacher", unknown), deploy("student", broken)]
    with pytest.raises(ModelError, match=r"teacher engine .*no_such"):
        servers[0].wait_until_ready()
    with pytest.raises(ModelError, match=r"student engine .*(?i:header)"):
        servers[1].wait_until_ready()


def test_what_no_node_can_give_is_refused_at_once(ray_cluster: None, tmp_path: Path) -> None:
    policy, engine = Policy("one", "anywhere"), EngineConfig(custom_resources={"moon": 1})
    with pytest.raises(ResourceError, match="1 moon"):
        ModelServer.deploy("teacher", policy, engine, run="test", pointers=tmp_path)
