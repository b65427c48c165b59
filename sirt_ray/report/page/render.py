"""Templates -> one self-contained page: no network, no frame, one script that the page allows by
its hash. All text is escaped, and made fit for HTML."""

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
"""Control characters except tab and line ends, halves of surrogate pairs, and noncharacters: HTML
cannot represent them."""


def showable(text: str) -> str:
    """Return `text` with a replacement character for each that HTML cannot represent."""
    return _UNSHOWABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def cut(text: str, most: int) -> tuple[str, int]:
    """Return the first `most` characters, and how many are left out."""
    return text[:most], max(0, len(text) - most)


_TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **context: Any) -> str:
    """Return the page, which can be encoded as UTF-8 whatever texts models and files contain."""
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
    """Return a content security policy: nothing may be requested, and no script but this one may
    run. Charts use inline styles."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )


def _shown(value: object) -> object:
    return showable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
