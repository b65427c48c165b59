"""Templates -> one self-contained page: no network, no frame, one script that the page names by its
hash. All text is escaped."""

import base64
import hashlib
import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters but tab and line ends, halves of surrogate pairs, and no characters: HTML has
no way to write them."""


def showable(text: str) -> str:
    """`text` with a replacement character for each that no page can have."""
    return _UNSHOWABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def cut(text: str, most: int) -> tuple[str, int]:
    """The beginning, at most `most` characters long, and how many characters are left out."""
    return text[:most], max(0, len(text) - most)


_TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **context: Any) -> str:
    """The page, which can be written as UTF-8 whatever models and files have said."""
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template(template)
        .render(
            **context,
            style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            policy=_policy(script),
            version=metadata.version("sirt-ray"),
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )


def _policy(script: str) -> str:
    """Nothing may be asked for, and no script may run but this one. Inline styles are what charts
    are made of."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )


def _shown(value: object) -> object:
    return showable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
