"""A server on this machine that speaks S3's protocol, on a port that the system chooses."""

import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyarrow import fs

KEY, SECRET = "the-key-of-the-node", "the-secret-of-the-node"
ALWAYS_ALLOWED = "inf"


@contextmanager
def s3_server() -> Iterator[str]:
    """Its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        log: list[str] = []
        for line in server.stderr:
            log.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise AssertionError("the S3 server did not start: " + "".join(log))
        # It stops where nobody reads what it says.
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield found.group()
    finally:
        server.terminate()
        server.wait(timeout=10)


def environment(endpoint: str) -> Mapping[str, str]:
    """What a node's environment says of it."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "eu-west-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def file_system(endpoint: str) -> Any:
    """As its owner sees it."""
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        access_key=KEY,
        secret_key=SECRET,
        region="eu-west-1",
        allow_bucket_creation=True,
        allow_delayed_open=True,
    )


def allow(endpoint: str, requests: str) -> None:
    """So many more requests; then those who may are asked for, and nobody may."""
    call = urllib.request.Request(
        f"{endpoint}/moto-api/reset-auth",
        data=requests.encode(),
        headers={"Content-Type": "text/plain"},
    )
    urllib.request.urlopen(call).close()
