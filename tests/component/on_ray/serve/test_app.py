"""The endpoint as Serve builds it from a config file: with Serve's code, without a cluster."""

import os
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray._common.utils import import_attr
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import BuiltApplication, build_app
from ray.serve.schema import ServeDeploySchema

from sirt_ray.errors import ConfigError, SirtError
from sirt_ray.on_ray.serve.replica import OpenAIReplica
from sirt_ray.quickstart import assets
from tests.helpers.cluster_rules import ROOT

MANIFEST = ROOT / "cluster" / "kuberay" / "service" / "rayservice.yaml"
ARGUMENTS = {"model": "quickstart:student", "engine": {"device": "cpu", "max_replicas": 3}}


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SIRT_API_KEY", "sk-very-secret")
    return "sk-very-secret"


def built(arguments: dict[str, Any]) -> BuiltApplication:
    builder = import_attr("sirt_ray.on_ray.serve.app:build")
    application = call_user_app_builder_with_args_if_necessary(builder, arguments)
    return build_app(application, name="student", default_runtime_env={})


def test_serve_builds_one_deployment_that_requires_the_key(key: str) -> None:
    (deployment,) = built(ARGUMENTS).deployments
    assert issubclass(deployment.func_or_class, OpenAIReplica)
    name, path, settings, check = deployment.init_args
    assert (name, path) == ("quickstart:student", str(assets.resolve("quickstart:student")))
    assert check.matches(key.encode()) and not check.matches(b"another")
    assert settings["accelerator_config"] == {"kind": "cpu"}
    assert key not in repr(deployment.init_args) and "SIRT_API_KEY" not in os.environ
    scaling = deployment._deployment_config.autoscaling_config
    assert scaling is not None and (scaling.min_replicas, scaling.max_replicas) == (1, 3)


def test_the_manifest_is_what_serve_reads(key: str) -> None:
    config = yaml.safe_load(yaml.safe_load(MANIFEST.read_text())["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(config)
    (application,) = schema.applications
    assert import_attr(application.import_path) is import_attr("sirt_ray.on_ray.serve.app:build")
    assert application.args["model"].startswith("s3://")
    (deployment,) = built(application.args | {"model": "quickstart:student"}).deployments
    name, _, settings, _ = deployment.init_args
    assert name == "student"
    assert settings["placement_group_config"] == {"bundles": [{"CPU": 1, "GPU": 1, "student": 1}]}
    assert settings["engine_kwargs"]["max_model_len"] == 2048


def test_without_a_key_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIRT_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="SIRT_API_KEY"):
        built(ARGUMENTS)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"models": "x"}, ValidationError),
        ({"model": "quickstart:studnet"}, SirtError),
        ({"engine": {"max_replica": 3}}, ConfigError),
        ({"engine": {"max_replicas": 0}}, ConfigError),
    ],
)
def test_a_wrong_argument_is_refused(
    wrong: dict[str, Any], error: type[Exception], key: str
) -> None:
    with pytest.raises(error):
        built(ARGUMENTS | wrong)
