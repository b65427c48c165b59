"""Several Ray nodes on this machine, in processes of their own that a test can kill.

    nodes = Nodes.start(folder)                     # a head without CPUs
    nodes.add("a", num_cpus=3, resources={"work": 1})
    nodes.hosts("RayTrainWorker")                   # names of the nodes that have such an actor
    nodes.kill("a")                                 # as by pulling the plug
    nodes.freeze("b")                               # as by cutting its network
    nodes.stop()

The cluster wants a token, as it should anywhere, and has its own temporary folder and ports: it
does not meet another Ray of this machine.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_OBJECT_STORE_BYTES = 150 << 20


class Nodes:
    """A cluster, driven over a pipe."""

    def __init__(self, process: "subprocess.Popen[str]", token: str, temporary: Path) -> None:
        self._process = process
        self._temporary = temporary
        self.url: str = self._answer()
        self.environment = {
            **plain_environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
        }
        """Of a process that may talk to the cluster."""
        self._commands: list[subprocess.Popen[str]] = []

    @classmethod
    def start(cls, log: Path) -> "Nodes":
        # Nodes do not find our code, and this file is what the first of them runs.
        from tests.helpers.ports import free_port

        token = secrets.token_hex(16)
        # Sockets lie there, whose paths must be short.
        temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        environment = {
            **plain_environment(),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_TMPDIR": str(temporary),
        }
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, __file__, str(free_port())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=environment,
                start_new_session=True,
            )
        return cls(process, token, temporary)

    def add(self, name: str, **what: Any) -> None:
        self._ask("add", name=name, what=what)

    def kill(self, name: str) -> None:
        self._ask("kill", name=name)

    def drain(self, name: str, seconds: float) -> None:
        """Give notice, as a cloud does of a spot machine, that the node will go."""
        self._ask("drain", name=name, seconds=seconds)

    def freeze(self, name: str) -> None:
        """Stop all of the node where it stands: it neither answers nor closes a connection."""
        self._ask("signal", name=name, number=signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self._ask("signal", name=name, number=signal.SIGCONT)

    def lose_head(self) -> None:
        """The cluster is gone; what ran on it finds out by itself."""
        self._ask("lose_head")

    def hosts(self, actor: str) -> list[str]:
        """The nodes on which actors live whose class has `actor` in its name."""
        return self._ask("hosts", actor=actor)

    def sirt(self, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
        """`sirt` with the cluster's address, as of somebody who is not in a terminal. It ends with
        the cluster at the latest."""
        # Tests that are started in the background ignore Ctrl-C, and so would the command.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command = subprocess.Popen(
            [sys.executable, "-m", "sirt_ray", *map(str, arguments), "--address", self.url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**self.environment, **environment},
            cwd=Path(__file__).parents[2],
        )
        self._commands.append(command)
        return command

    def stop(self) -> None:
        """Raises AssertionError where an engine outlives its node by more than a moment."""
        from tests.helpers.sleeping_engine import wait_until

        for command in self._commands:
            command.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            shutil.rmtree(self._temporary, ignore_errors=True)
        wait_until(lambda: not self._engines(), 30, "the end of the engines' own processes")

    def _engines(self) -> list[str]:
        """vLLM's processes in the session that all nodes of this cluster were started in."""
        import psutil

        names = {process.pid: process.info["name"] for process in psutil.process_iter(["name"])}
        session = self._process.pid
        return [name for pid, name in names.items() if "VLLM" in name and _session(pid) == session]

    def _ask(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the cluster's process ended"
        return json.loads(line)


def _session(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getsid(pid)
    return None


def plain_environment() -> dict[str, str]:
    """Without what would let a node find this code by itself: jobs bring it along."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("RAY_")}


def _main(dashboard_port: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints, too.

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    from ray.cluster_utils import Cluster

    cluster = Cluster()
    common: dict[str, Any] = {"object_store_memory": _OBJECT_STORE_BYTES}
    cluster.add_node(
        **common,
        num_cpus=0,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=dashboard_port,
        dashboard_agent_listen_port=0,
    )
    url = f"http://{cluster.webui_url}"
    answer(url)
    nodes: dict[str, Any] = {}
    for line in sys.stdin:
        asked: Mapping[str, Any] = json.loads(line)
        match asked["do"]:
            case "add":
                own = _own_folder(cluster)
                node = cluster.add_node(**common, **asked["what"], temp_dir=own)
                nodes[asked["name"]] = node
                answer(None)
            case "kill":
                cluster.remove_node(nodes.pop(asked["name"]), allow_graceful=False)
                answer(None)
            case "drain":
                _drain(str(cluster.address), nodes[asked["name"]].node_id, asked["seconds"])
                answer(None)
            case "signal":
                _signal(nodes[asked["name"]], asked["number"])
                answer(None)
            case "lose_head":
                cluster.remove_node(cluster.head_node, allow_graceful=False)
                answer(None)
            case _:
                answer(_hosts(url, asked["actor"], nodes))
    cluster.shutdown()


def _drain(address: str, node_id: str, seconds: float) -> None:
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address]
    command += ["--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "a test", "--deadline-remaining-seconds", str(int(seconds))]
    subprocess.run(command, check=True, timeout=120)


def _signal(node: Any, number: int) -> None:
    import psutil

    for each in node.all_processes.values():
        for started in each:
            process = psutil.Process(started.process.pid)
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(number)


def _own_folder(cluster: Any) -> str:
    """A node's folder. Nodes unpack what a job brings, each for itself as on machines of their own,
    or they would take it from under each other; but those of one machine look for logs where its
    head has them."""
    from ray._private.utils import write_ray_address

    own = tempfile.mkdtemp(dir=os.environ["RAY_TMPDIR"])
    session = Path(own) / cluster.head_node.session_name
    session.mkdir()
    (session / "logs").symlink_to(cluster.head_node.get_logs_dir_path())
    write_ray_address(cluster.address, own)
    return own


def _hosts(url: str, actor: str, nodes: Mapping[str, Any]) -> list[str]:
    from ray.util.state import list_actors

    actors: list[Any] = list_actors(url, filters=[("state", "=", "ALIVE")], limit=1000)
    found = {one.node_id for one in actors if actor in one.class_name}
    return [name for name, node in nodes.items() if node.node_id in found]


if __name__ == "__main__":
    _main(int(sys.argv[1]))
