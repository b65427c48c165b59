"""Every tracker under the name that job files use, and the package that it needs."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from sirt_ray.config.job import TrackerName
from sirt_ray.errors import ConfigError
from sirt_ray.tracking.base import Origin, Tracker
from sirt_ray.tracking.mlflow import MlflowTracker
from sirt_ray.tracking.tensorboard import TensorboardTracker
from sirt_ray.tracking.wandb import WandbTracker

TRACKERS: dict[TrackerName, Callable[[Origin], Tracker]] = {
    "tensorboard": TensorboardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}
_PACKAGES: dict[TrackerName, str] = {
    "tensorboard": "tensorboardX",
    "mlflow": "mlflow",
    "wandb": "wandb",
}


def check_installed(names: Sequence[TrackerName]) -> None:
    """Raise ConfigError where a tracker's package is missing."""
    missing = [name for name in names if find_spec(_PACKAGES[name]) is None]
    if missing:
        extras = ",".join(missing)
        raise ConfigError(
            f"tracking names {' and '.join(missing)}, which is not installed here. Install it with"
            f" `pip install 'sirt-ray[{extras}]'`, or take it out of tracking"
        )
