"""The endpoint as Ray Serve deploys it by itself, from the configuration in a RayService."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sirt_ray.quickstart import assets

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

STUDENT = Path(assets.resolve("quickstart:student"))
READY_SECONDS = 180


@pytest.fixture
def deployed(ray_cluster: None) -> Iterator[Any]:
    """Deploys applications, which are waited for; gives their status. No HTTP: that is
    `sirt serve`'s test."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    def deploy(arguments: dict[str, Any], environment: dict[str, str]) -> Any:
        application = {
            "name": "student",
            "import_path": "sirt_ray.on_ray.serve.app:build",
            "args": arguments,
            "runtime_env": {"env_vars": environment},
        }
        serve.start(proxy_location="Disabled")
        client: Any = _get_global_client()
        client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
        started = time.monotonic()
        while (status := serve.status().applications["student"]).status == "DEPLOYING":
            assert time.monotonic() - started < READY_SECONDS, status
            time.sleep(0.2)
        return status

    yield deploy
    serve.delete("student")


def test_serve_deploys_a_model_at_an_address(deployed: Any) -> None:
    from ray import serve

    engine = {"device": "cpu", "max_model_len": 128}
    arguments = {"model": STUDENT.as_uri(), "name": "student", "engine": engine}
    status = deployed(arguments, {"SIRT_API_KEY": "sk-key-of-the-tests"})
    assert status.status == "RUNNING", status
    facts = serve.get_app_handle("student").facts.remote().result(timeout_s=30)
    assert facts.max_model_len == 128


def test_without_a_key_serve_shows_why_nothing_runs(deployed: Any) -> None:
    status = deployed({"model": str(STUDENT), "api_key_env": "NO_SUCH_KEY"}, {})
    assert status.status == "DEPLOY_FAILED"
    assert "NO_SUCH_KEY" in status.message
