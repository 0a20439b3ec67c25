"""Convert strings to well-formed Unicode, which UTF-8 can express."""

from __future__ import annotations


def well_formed(text: str) -> str:
    """Return `text` with each surrogate pair joined to one character and each lone surrogate replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
