"""The driver of one sampling, in a process of its own that a test can kill.

python -m tests.helpers.sampling_driver MODEL OUT
"""

import sys
from pathlib import Path

import ray

from sirt_ray.core.interfaces import Policy
from tests.helpers.sampling import start_sampler
from tests.integration.on_ray.sampling.test_faults import ENGINE, Sampling


def main(model: Path, out: Path) -> None:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    policy = Policy("one", str(model))
    sampler = start_sampler("teacher", policy, ENGINE, run="driver", pointers=out.parent)
    Sampling.of(sampler, model).into(out)
    sampler.stop()
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
