"""What `sirt doctor` finds on ports that are taken."""

import socket
from collections.abc import Iterator

import pytest

from sirt_ray.doctor import network
from sirt_ray.doctor.findings import Finding


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_is_named(taken: int) -> None:
    (found,) = network.check_ports([(taken, "serving", "Take --port")])
    assert found == Finding("ports", "warning", f"{taken} is taken (serving)", "Take --port")
