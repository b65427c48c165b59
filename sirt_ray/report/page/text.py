"""What models and files say, made fit to be shown. Whether it is markup the template takes care
of, which escapes everything."""

import re

_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters but tab and line ends, halves of surrogate pairs, and no characters: HTML has
no way to write them."""


def showable(text: str) -> str:
    """`text` with a replacement character for each that no page can have."""
    return _UNSHOWABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def cut(text: str, most: int) -> tuple[str, int]:
    """The beginning, at most `most` characters long, and how many characters are left out."""
    return text[:most], max(0, len(text) - most)
