"""`python -m sirt_ray` is the command `sirt`."""

from sirt_ray.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
