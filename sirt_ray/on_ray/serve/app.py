"""A model as an OpenAI-compatible endpoint, on Ray Serve and vLLM.

door = HttpAddress("127.0.0.1", 8000)
door.require_free()                              # before anything is started
with connected(address, ...), opened(model, door, key, address, say) as endpoint:
    ...                                          # clients are answered at door.url
    endpoint.watch(say)                          # until Ctrl-C

client --HTTP--> Serve's proxy (the door) --> OpenAIReplica: key, vLLM's routes, engine
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

Print = Callable[[str], None]
Result = TypeVar("Result")

_ANSWER_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 0.2
_WATCH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running endpoint."""

    app: str
    max_model_len: int
    """Longest prompt plus completion, in tokens."""

    def watch(self, say: Print) -> NoReturn:
        """Stay until interrupted; `say` when the engine is lost and when it is back. Raises
        StageError where the endpoint is gone for good."""
        answering = True
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
                    " command. Start it again to serve on"
                )
            if (status.status == "RUNNING") != answering:
                answering = not answering
                say("the engine is back" if answering else "the engine is lost; Ray restarts it")


@contextmanager
def opened(
    model: ServedModel, door: HttpAddress, key: KeyCheck | None, address: str | None, say: Print
) -> Generator[Endpoint]:
    """The endpoint, answering; removed from Ray Serve at the end.

    Waits for: the engine's start, telling `say` every 30 s. Raises ResourceError where the door or
    the cluster cannot be had, ModelError or StageError with the engine's reason.
    """
    check_resources(cluster.of_engine("student", model.engine))
    app = _app_name(model)
    _open_serve(app, door, address)
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
        with attached_handler(CallbackHandler(say)):
            server.wait_until_ready()
        _wait_for_answer(door, address)
        yield Endpoint(app, server.max_model_len)
    finally:
        _close_serve(app, address)


def _app_name(model: ServedModel) -> str:
    return "sirt-serve-" + "".join(c if c.isalnum() else "-" for c in model.name)


def _open_serve(app: str, door: HttpAddress, address: str | None) -> None:
    """Start Serve with its proxy at the door. A Serve that runs already has another door, or none,
    for good: it is stopped if nobody uses it."""
    others = sorted(set(serve.status().applications) - {app})
    if others:
        raise ResourceError(
            f"Ray Serve on this cluster is in use ({', '.join(others)}), and its host and port"
            " cannot be changed meanwhile. Wait until that ends, use another cluster, or leave out"
            " --address to serve on this machine"
        )
    if address is not None:
        serve.shutdown()
        problem = _on_head(HttpAddress.problem, door)
        if problem is not None:
            raise ResourceError(f"on the head node of the cluster, {problem}")
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": door.host, "port": door.port})
    except (RuntimeError, TimeoutError) as error:
        raise ResourceError(
            f"Ray Serve cannot listen on port {door.port} of {door.host}: {error}. Choose another"
            " with --host and --port"
        ) from error


def _close_serve(app: str, address: str | None) -> None:
    """Remove the application. Serve and its port go with a Ray of our own; on a cluster they go
    where nobody else uses them."""
    if app in serve.status().applications:
        serve.delete(app)
    if address is not None and not serve.status().applications:
        serve.shutdown()


def _wait_for_answer(door: HttpAddress, address: str | None) -> None:
    """The proxy hears of a new application a moment after it runs."""
    began = time.monotonic()
    while not (door.answers() if address is None else _on_head(HttpAddress.answers, door)):
        if time.monotonic() - began > _ANSWER_TIMEOUT_SECONDS:
            raise StageError(
                f"the engine runs, but nothing answers at {door.url}. Look into the proxy's log in"
                " Ray's session folder"
            )
        time.sleep(_POLL_SECONDS)


def _on_head(ask: Callable[[HttpAddress], Result], door: HttpAddress) -> Result:
    """What `ask` finds on the cluster's head node, where Serve's proxy runs."""
    head = next(
        node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]
    )
    pinned = NodeAffinitySchedulingStrategy(head, soft=False)
    return ray.get(ray.remote(ask).options(num_cpus=0, scheduling_strategy=pinned).remote(door))


def application(model: ServedModel, key: KeyCheck | None) -> serve.Application:
    """The endpoint as Serve deploys it; its route prefix is the deployer's."""
    engine = model.engine
    # One at least: a client would wait for the minutes that a start from nothing takes.
    scaling = replicas(engine, max(1, engine.min_replicas), target_requests(engine))
    endpoint = deployment("openai", serve.ingress()(OpenAIReplica), engine, scaling)
    return endpoint.bind(model.name, model.path, llm_settings(engine, allowed_origins=[]), key)


# FOLDED on_ray.serve_app: `sirt serve` for a Ray Serve that reads what to run in a file, as from KubeRay's RayService.
#
#     applications:
#       - name: student
#         import_path: sirt_ray.on_ray.serve.app:build
#         args: {model: s3://bucket/runs/mine/round_03/student, name: mine, engine: {device: gpu}}
#
# Serve keeps the application and its proxies; there is no command that lives as long as they do.


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
