"""Make any string of Python fit for UTF-8."""

from __future__ import annotations


def well_formed(text: str) -> str:
    """Return `text` with surrogates that form a pair as one character and others as U+FFFD, as texts are encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
