"""`sirt serve` in its own process, for tests that send it requests."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from tests.helpers.ports import free_port

KEY = "sk-key-of-the-tests"
READY_SECONDS = 180
STOPPED_SECONDS = 60
PORT_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Running:
    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def output(self) -> str:
        return self.log.read_text()

    def client(self, key: str = KEY, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)


def started(model: str, output: Path, key: str | None = KEY) -> Running:
    """`sirt serve` in its own session, as in a terminal; it has just been started."""
    port = free_port()
    command = [sys.executable, "-m", "sirt_ray", "serve", model, "--port", str(port)]
    environment = {k: v for k, v in os.environ.items() if k != "SIRT_API_KEY"}
    # Tests that are started in the background ignore Ctrl-C, and so would the command.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with output.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment | ({} if key is None else {"SIRT_API_KEY": key}),
        )
    return Running(process, port, output)


def wait_for(running: Running, text: str) -> bool:
    """Whether `text` is printed before the process ends."""
    deadline = time.monotonic() + READY_SECONDS
    while text not in running.output():
        assert time.monotonic() < deadline, running.output()
        if running.process.poll() is not None:
            return text in running.output()
        time.sleep(0.2)
    return True


def ready(model: str, output: Path) -> Running:
    for _ in range(PORT_ATTEMPTS):
        running = started(model, output)
        if wait_for(running, "curl "):
            return running
        # The port was free a moment ago; another program may have been faster.
        assert "is taken" in running.output(), running.output()
    raise AssertionError("every port that was free was taken a moment later")


def assert_stopped(running: Running) -> None:
    assert running.process.wait(STOPPED_SECONDS) == 130, running.output()
    assert running.output().rstrip().endswith("stopped"), running.output()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", running.port))
