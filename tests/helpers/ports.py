"""Ports for what has to be told one before it listens."""

import socket


def free_port() -> int:
    """Nobody listens there now, on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
