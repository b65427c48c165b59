"""The Serve applications of a run: their names, and their cleanup once the driver is gone.

Serve applications outlive the driver that started them. Their names contain the run's folder, so
two runs on one cluster never share one, and the next driver of a run knows which are left of it.

    python -m sirt_ray.on_ray.serve_apps RUN_ID...    # as a job on the cluster: delete them
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import ray
from ray import serve

from sirt_ray.storage import object_store
from sirt_ray.storage.uri import is_uri

_ROLES = ("teacher", "student")
_DIGEST_BYTES = 4


def run_id(folder: str | Path) -> str:
    """Return a run's name on a cluster: that of its folder, and a digest of the folder's path.

    Example::

        run_id("/shared/runs/quickstart")  # quickstart-3f9a1c07
    """
    uri = folder if isinstance(folder, str) else object_store.to_uri(folder)
    uri = uri.rstrip("/") if is_uri(uri) else os.path.abspath(uri)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", uri.rpartition("/")[2])
    digest = hashlib.blake2b(uri.encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{name}-{digest}"


def app_name(run: str, role: str) -> str:
    """Return the name of the Serve application of a run's teacher or student."""
    return f"sirt-{run}-{role}"


def app_names(runs: Iterable[str]) -> set[str]:
    """Return the names of all Serve applications that the runs may have."""
    return {app_name(run, role) for run in runs for role in _ROLES}


def delete_apps(runs: Iterable[str]) -> list[str]:
    """Delete the applications of runs without a driver; return their names. Other runs'
    applications, and Serve itself, stay."""
    left = sorted(app_names(runs) & set(serve.status().applications))
    for app in left:
        serve.delete(app)
    return left


def _main() -> None:
    ray.init(address="auto", log_to_driver=False)
    for app in delete_apps(sys.argv[1:]):
        sys.stdout.write(f"removed {app}\n")


if __name__ == "__main__":
    _main()
