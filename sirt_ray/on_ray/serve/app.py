"""A model as an OpenAI-compatible endpoint, on Ray Serve and vLLM.

As `sirt serve` runs it:

    http_address = HttpAddress("127.0.0.1", 8000)
    http_address.require_free()                      # before anything is started
    with connected(cluster, ...), opened(model, http_address, key, cluster, log) as endpoint:
        ...                                          # clients send requests to http_address.url
        endpoint.watch(log)                          # until Ctrl-C

    client --HTTP--> Serve's proxy (http_address) --> OpenAIReplica: key, vLLM's routes, engine

As a Ray Serve that reads a config file, for example KubeRay's RayService, deploys it with `build`:

    applications:
      - name: student
        import_path: sirt_ray.on_ray.serve.app:build
        args: {model: s3://bucket/runs/mine/round_03/student, name: mine, engine: {device: gpu}}

Serve then keeps the application and its proxies itself; no command has to run for as long.
"""

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import ray
from pydantic import Field
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sirt_ray.config.base import Section
from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ResourceError, StageError
from sirt_ray.logs import CallbackHandler, attached_handler
from sirt_ray.on_ray import cluster
from sirt_ray.on_ray.cluster import check_resources
from sirt_ray.on_ray.engine.options import target_requests
from sirt_ray.on_ray.engine.server import ModelServer, deployment, llm_settings, replicas
from sirt_ray.on_ray.serve.address import HttpAddress
from sirt_ray.on_ray.serve.auth import DEFAULT_VARIABLE, KeyCheck, take_key
from sirt_ray.on_ray.serve.replica import OpenAIReplica
from sirt_ray.on_ray.serve.resolve import ServedModel, find_model

Log = Callable[[str], None]
Result = TypeVar("Result")

_HEALTH_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 0.2
_WATCH_SECONDS = 2.0


def application(model: ServedModel, key: KeyCheck | None) -> serve.Application:
    """Return the endpoint as a Serve application. Whoever deploys it chooses the route prefix."""
    engine = model.engine
    # At least one replica: scaling from zero would make a client wait for minutes.
    scaling = replicas(engine, max(1, engine.min_replicas), target_requests(engine))
    endpoint = deployment("openai", serve.ingress()(OpenAIReplica), engine, scaling)
    return endpoint.bind(model.name, model.path, llm_settings(engine, allowed_origins=[]), key)


# For `sirt serve`: an endpoint that is removed when the command ends


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running endpoint."""

    app: str
    """Name of the Serve application."""
    max_model_len: int
    """Maximum of prompt plus completion, in tokens."""

    def watch(self, log: Log) -> NoReturn:
        """Block until interrupted, and `log` when the engine is lost and when it is back. Raises
        StageError if the application is deleted or the connection to Ray is lost."""
        running = True
        while True:
            time.sleep(_WATCH_SECONDS)
            try:
                status = serve.status().applications.get(self.app)
            except (RayError, RayServeException, ConnectionError) as error:
                raise StageError(
                    f"the connection to Ray is lost: {error}. Start it again when Ray is back"
                ) from error
            if status is None:
                raise StageError(
                    f"the Serve application {self.app} was removed from the cluster, not by this"
                    " command. Start it again to continue serving"
                )
            if (status.status == "RUNNING") != running:
                running = not running
                log("the engine is back" if running else "the engine is lost; Ray restarts it")


@contextmanager
def opened(
    model: ServedModel,
    http_address: HttpAddress,
    key: KeyCheck | None,
    cluster_address: str | None,
    log: Log,
) -> Generator[Endpoint]:
    """Deploy the endpoint, yield it once it is healthy, and delete it from Ray Serve at the end.

    Waits for the engine's start, with a line to `log` every 30 s. Raises ResourceError if the port
    or the cluster's resources are not available, ModelError or StageError with the engine's reason.
    """
    check_resources(cluster.of_engine("student", model.engine))
    app = _app_name(model)
    _start_serve(app, http_address, cluster_address)
    try:
        target = serve.RunTarget(target=application(model, key), name=app, route_prefix="/")
        (handle,) = serve.run_many(
            [target],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        server = ModelServer(
            model.name, Policy(model.name, model.path), model.engine, app, Path(), handle
        )
        with attached_handler(CallbackHandler(log)):
            server.wait_until_ready()
        _wait_until_healthy(http_address, cluster_address)
        yield Endpoint(app, server.max_model_len)
    finally:
        _delete_app(app, cluster_address)


def _app_name(model: ServedModel) -> str:
    return "sirt-serve-" + "".join(c if c.isalnum() else "-" for c in model.name)


def _start_serve(app: str, http_address: HttpAddress, cluster_address: str | None) -> None:
    """Start Serve with its proxy at `http_address`. The proxy's address of a running Serve cannot
    be changed: such a Serve is shut down first if it has no other application."""
    others = sorted(set(serve.status().applications) - {app})
    if others:
        raise ResourceError(
            f"Ray Serve on this cluster is in use ({', '.join(others)}), and its host and port"
            " cannot be changed meanwhile. Wait until that ends, use another cluster, or leave out"
            " --address to serve on this machine"
        )
    if cluster_address is not None:
        serve.shutdown()
        error = _on_head(HttpAddress.bind_error, http_address)
        if error is not None:
            raise ResourceError(f"on the head node of the cluster, {error}")
    host, port = http_address.host, http_address.port
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    except (RuntimeError, TimeoutError) as error:
        raise ResourceError(
            f"Ray Serve cannot listen on port {port} of {host}: {error}. Choose another"
            " with --host and --port"
        ) from error


def _delete_app(app: str, cluster_address: str | None) -> None:
    """Delete the application. A local Ray takes Serve and its port with it; on a cluster Serve is
    shut down if it has no other application."""
    if app in serve.status().applications:
        serve.delete(app)
    if cluster_address is not None and not serve.status().applications:
        serve.shutdown()


def _wait_until_healthy(http_address: HttpAddress, cluster_address: str | None) -> None:
    """Wait for the proxy, which learns of a new application a moment after it runs. Raises
    StageError after a minute."""
    started = time.monotonic()
    while not (
        http_address.is_healthy()
        if cluster_address is None
        else _on_head(HttpAddress.is_healthy, http_address)
    ):
        if time.monotonic() - started > _HEALTH_TIMEOUT_SECONDS:
            raise StageError(
                f"the engine runs, but nothing answers at {http_address.url}. Look into the proxy's"
                " log in Ray's session folder"
            )
        time.sleep(_POLL_SECONDS)


def _on_head(check: Callable[[HttpAddress], Result], http_address: HttpAddress) -> Result:
    """Run `check` on the cluster's head node, where Serve's proxy runs."""
    head = next(
        node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]
    )
    pinned = NodeAffinitySchedulingStrategy(head, soft=False)
    task = ray.remote(check).options(num_cpus=0, scheduling_strategy=pinned)
    return ray.get(task.remote(http_address))


# For Serve config files: an application that Serve itself keeps


class ServedApplication(Section):
    """The `args` of the application in a Serve config file."""

    model: str
    """As for `sirt serve`, or the URI of a model in object storage."""
    name: str | None = None
    """The name that clients call the model by; None: the run's or model's name."""
    engine: dict[str, Any] = Field(default={})
    """Fields of `resources.student`, as `sirt serve --set` takes them. Set `device`: a cluster with
    an autoscaler may have no GPU yet when this is read."""
    api_key_env: str = DEFAULT_VARIABLE
    """The environment variable with the API key. It must be set, since Serve listens to other
    machines here."""


def build(arguments: ServedApplication) -> Application:
    """Return the application for a Serve config file. Raises ConfigError without a key, ModelError
    without a model; Serve shows both in the application's status."""
    key = take_key(arguments.api_key_env)
    options = [f"{field}={json.dumps(value)}" for field, value in arguments.engine.items()]
    return application(find_model(arguments.model, arguments.name, options), key)
