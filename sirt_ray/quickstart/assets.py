"""Where the quickstart's trained models lie in the installed package."""

from pathlib import Path

from sirt_ray.errors import ModelError

PREFIX = "quickstart:"

_FOLDER = Path(__file__).parent / "assets"
_ROLES = ("student", "teacher")


def is_quickstart(name: str) -> bool:
    """Does this model name ask for one of the package's own models?"""
    return name.startswith(PREFIX)


def resolve(name: str) -> Path | str:
    """`quickstart:student` and `quickstart:teacher` become folders; other names stay as given."""
    if not is_quickstart(name):
        return name
    role = name.removeprefix(PREFIX)
    if role not in _ROLES:
        known = " or ".join(f"{PREFIX}{role}" for role in _ROLES)
        raise ModelError(
            f"unknown quickstart model {name!r}: the package holds no such model. Use {known}, or a"
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
