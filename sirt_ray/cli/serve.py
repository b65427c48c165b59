"""`sirt serve`: a run's student, or any model, as an OpenAI-compatible endpoint."""

import argparse
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from sirt_ray.cli.options import SERVE_PORT, add_debug, examples
from sirt_ray.config.resources import EngineConfig, ResourcesConfig
from sirt_ray.errors import SirtError

EXAMPLES = """\
examples:
  sirt serve runs/quickstart                     # the run's last kept student
  sirt serve quickstart:student --port 8080
  SIRT_API_KEY=... sirt serve runs/mine --host 0.0.0.0
  sirt serve runs/mine --address auto --set max_replicas=4 --set max_model_len=2048
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `sirt serve`."""
    serve = commands.add_parser(
        "serve",
        help="serve a run's student, or any model, as an OpenAI-compatible endpoint",
        description="Serve a model as an OpenAI-compatible endpoint until Ctrl-C.",
        **examples(EXAMPLES),
    )
    serve.add_argument(
        "model",
        metavar="MODEL|RUN_DIR",
        help="a run's folder (its last kept student), a model's folder, a name on the hub, or"
        " quickstart:student",
    )
    serve.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    serve.add_argument("--port", type=_port, default=SERVE_PORT, help="(default: %(default)s)")
    serve.add_argument(
        "--api-key-env",
        metavar="VARIABLE",
        help="the environment variable with the API key that clients must send (default:"
        " SIRT_API_KEY; if that is not set, no key is required)",
    )
    serve.add_argument(
        "--name", help="the name of the model in the API (default: the run's or model's)"
    )
    serve.add_argument("--address", help="a Ray cluster to run on (default: one on this machine)")
    serve.add_argument(
        "--set",
        action="append",
        default=[],
        dest="options",
        metavar="field=value",
        help="one field of the engine, as under `resources.student` in a job file:"
        f" {', '.join(EngineConfig.model_fields)}; may be repeated",
    )
    add_debug(serve)
    serve.set_defaults(command=_serve, stopped="stopped")


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 1 << 16:
        raise argparse.ArgumentTypeError(f"{port} is not a port. Give a number from 1 to 65535")
    return port


def _serve(arguments: argparse.Namespace) -> int:
    from sirt_ray.driver.checks import check_model
    from sirt_ray.on_ray.serve.address import HttpAddress
    from sirt_ray.on_ray.serve.auth import open_host_warning, take_key
    from sirt_ray.on_ray.serve.resolve import find_model

    console = Console()
    http_address = HttpAddress(arguments.host, arguments.port)
    if arguments.address is None:
        http_address.require_free()
    key = take_key(arguments.api_key_env)
    model = find_model(arguments.model, arguments.name, arguments.options)
    check_model(arguments.model, model.path)
    warning = open_host_warning(http_address.host, key)
    if warning is not None:
        Console(stderr=True).print(f"[bold red]warning:[/] {escape(warning)}", soft_wrap=True)

    from sirt_ray.on_ray.cluster import connected
    from sirt_ray.on_ray.serve.app import opened

    print_line = partial(console.print, soft_wrap=True, markup=False, highlight=False)
    log = partial(print_line, style="dim")
    log(f"Starting {model.path}: half a minute, with a large model some minutes")
    started, logs = time.monotonic(), Path(tempfile.mkdtemp(prefix="sirt-serve-"))
    try:
        with (
            connected(arguments.address, ResourcesConfig(student=model.engine), logs),
            opened(model, http_address, key, arguments.address, log) as endpoint,
        ):
            log(f"Ready after {time.monotonic() - started:.0f} s; Ctrl-C stops it")
            longest = f"{endpoint.max_model_len:,} tokens at most"
            print_line(f"{model.name} is served at {http_address.url}, {longest}")
            print_line(http_address.example_request(model.name, key and key.variable))
            endpoint.watch(log)
    except SirtError:
        log(f"The log is in {logs}")
        raise
    except KeyboardInterrupt:
        shutil.rmtree(logs, ignore_errors=True)
        raise
