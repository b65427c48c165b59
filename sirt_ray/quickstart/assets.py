"""Paths of the quickstart's trained models in the installed package."""

from pathlib import Path

from sirt_ray.errors import ModelError

PREFIX = "quickstart:"

_FOLDER = Path(__file__).parent / "assets"
_ROLES = ("student", "teacher")


def is_quickstart(name: str) -> bool:
    """Return whether the model name is one of the package's models."""
    return name.startswith(PREFIX)


def resolve(name: str) -> Path | str:
    """Return the folder of `quickstart:student` or `quickstart:teacher`; other names unchanged.
    Raises ModelError for another name with the prefix, and if the model's files are missing."""
    if not is_quickstart(name):
        return name
    role = name.removeprefix(PREFIX)
    if role not in _ROLES:
        known = " or ".join(f"{PREFIX}{role}" for role in _ROLES)
        raise ModelError(
            f"unknown quickstart model {name!r}: the package has no such model. Use {known}, or a"
            " Hugging Face name or folder without the prefix."
        )
    folder = _FOLDER / role
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"the files of {name!r} are missing from {folder}: the package was installed without"
            " its data. Install it again, or make the models with"
            f" `python -m sirt_ray.quickstart.pretrain --out {_FOLDER}`."
        )
    return folder
