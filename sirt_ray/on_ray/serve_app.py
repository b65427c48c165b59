"""`sirt serve` for a Ray Serve that reads what to run in a file, as from KubeRay's RayService.

    applications:
      - name: student
        import_path: sirt_ray.on_ray.serve_app:build
        args: {model: s3://bucket/runs/mine/round_03/student, name: mine, engine: {device: gpu}}

Serve keeps the application and its proxies; there is no command that lives as long as they do.
"""

import json
from typing import Any

from pydantic import Field
from ray.serve import Application

from sirt_ray.config.base import Section
from sirt_ray.on_ray.serve.app import application
from sirt_ray.on_ray.serve.auth import DEFAULT_VARIABLE, take_key
from sirt_ray.on_ray.serve.resolve import find_model


class ServedApplication(Section):
    model: str
    """As `sirt serve` takes it, or the address of a model in object storage."""
    name: str | None = None
    """What clients call it; None: the run's or model's name."""
    engine: dict[str, Any] = Field(default={})
    """Fields of `resources.student`, as --set gives them to `sirt serve`. Name `device`: a cluster
    that grows by itself may have no GPU yet when this is read."""
    api_key_env: str = DEFAULT_VARIABLE
    """The variable with the key that clients must show. Serve listens to other machines here, so
    there must be one."""


def build(arguments: ServedApplication) -> Application:
    """The application. Raises ConfigError without a key, ModelError without a model; Serve shows
    both in the application's status."""
    key = take_key(arguments.api_key_env)
    options = [f"{field}={json.dumps(value)}" for field, value in arguments.engine.items()]
    return application(find_model(arguments.model, arguments.name, options), key)
