"""What to say where an optional library is not there."""

from __future__ import annotations


def missing_extra(what: str, error: ImportError) -> ImportError:
    """The error that names the library and the extra that brings it."""
    return ImportError(
        f"{what} needs {error.name}: run pip install '.[corpus]' in a checkout of cwm-core", name=error.name
    )
