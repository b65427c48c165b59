"""`python -m sirt_ray.training`, an earlier name of `sirt train`."""

import sys

from sirt_ray.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
