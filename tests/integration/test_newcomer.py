"""A newcomer: a fresh clone, the README, and nothing else. Every command of it that needs neither a
GPU nor hours is typed, from the set-up to the report and a cluster."""

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.helpers import newcomer
from tests.helpers.fake_hub_uploads import receiver
from tests.helpers.newcomer import Step
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_port

TOKEN = "hf_write_0123456789"
INTERRUPTED = 130

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]


@dataclass(frozen=True)
class Newcomer:
    """Types commands in a clone."""

    clone: Path
    environment: Mapping[str, str]
    places: Mapping[str, str]

    def types(self, step: Step) -> str:
        """What is wrong with what came of it, or nothing."""
        line = newcomer.replaced(step.command, step.replacements) + f" {step.extra}"
        line = newcomer.replaced(line, {f"{{{k}}}": v for k, v in self.places.items()}).strip()
        output = self.clone / "told"
        began = time.monotonic()
        with output.open("w") as file:
            process = self.started(shlex.split(line), file.fileno())
            try:
                if step.until:
                    said = self._says(process, output, step.until)
                    process.send_signal(signal.SIGINT if said else signal.SIGKILL)
                code = process.wait(1500)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)  # noqa: T201
        told = output.read_text()
        right = (
            code == (INTERRUPTED if step.until else 0)
            and re.search(step.prints, told)
            and (self.clone / step.creates).exists()
        )
        return "" if right else f"{line} ended with {code} and said:\n{told[-5000:]}"

    def started(self, words: list[str], output: int) -> "subprocess.Popen[bytes]":
        # Tests that are started in the background ignore Ctrl-C, and so would the command.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        words[0] = shutil.which(words[0], path=self.environment["PATH"]) or words[0]
        return subprocess.Popen(
            words,
            cwd=self.clone,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(self.environment),
            start_new_session=True,
        )

    @staticmethod
    def _says(process: "subprocess.Popen[bytes]", output: Path, text: str) -> bool:
        """Whether it says so before it ends."""
        deadline = time.monotonic() + 300
        while not re.search(text, output.read_text()):
            if process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.5)
        return True


@pytest.fixture(scope="module")
def somebody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    clone = tmp_path_factory.mktemp("newcomer") / "sirt-ray"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "RAY_", "SIRT_", "HF_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment["PATH"] = f"{clone / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    # Sockets lie there, whose paths must be short; and `auto` finds no other Ray of this machine.
    ray = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    environment |= {"RAY_TMPDIR": ray, "SIRT_API_KEY": "the-newcomers-own", "BROWSER": "true"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    places = {"port": str(free_port()), "clone": str(clone)}
    newcomer.prepare(clone)
    try:
        with receiver({TOKEN: "me"}) as hub:
            environment |= {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}
            yield Newcomer(clone, environment, places)
    finally:
        shutil.rmtree(ray, ignore_errors=True)


@contextmanager
def ray_started(somebody: Newcomer) -> Iterator[Newcomer]:
    """`ray start --head`, as on a machine of one's own."""
    port = free_port()
    line = "ray start --head --block --num-cpus 4 --port 0 --node-ip-address 127.0.0.1"
    line += f" --dashboard-host 127.0.0.1 --dashboard-port {port}"
    output = somebody.clone / "head"
    with output.open("w") as file:
        head = somebody.started(shlex.split(line), file.fileno())
    try:
        assert somebody._says(head, output, "Ray runtime started"), output.read_text()
        yield replace(somebody, places={**somebody.places, "dashboard": str(port)})
    finally:
        head.terminate()
        head.wait(60)


def test_a_newcomer_gets_what_the_readme_promises(somebody: Newcomer) -> None:
    wrong = [somebody.types(step) for step in newcomer.STEPS]
    wrong.append(somebody.types(newcomer.EXPORTED))
    with ray_started(somebody) as on_cluster:
        wrong += [on_cluster.types(step) for step in newcomer.CLUSTER_STEPS]
    assert not any(wrong), "\n\n".join(filter(None, wrong))
    exported = newcomer.answers(somebody.clone / "exported/evaluation")
    of_run = newcomer.answers(somebody.clone / "runs/quickstart/round_02/evaluation")
    assert len(exported) == 160 and exported.items() <= of_run.items()
