"""The error for a missing optional library."""

from __future__ import annotations


def missing_extra(what: str, error: ImportError) -> ImportError:
    """Return the error that names the missing library and the extra that installs it."""
    return ImportError(
        f"{what} needs {error.name}: run pip install '.[corpus]' in a checkout of cwm-core", name=error.name
    )
