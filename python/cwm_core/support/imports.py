"""Find extensions: objects named by import path, and entry points of installed packages."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import entry_points
from typing import Any


def import_object(path: str) -> Any:
    """Return the object that an import path names, such as `package.module:name`.

    Modules in the current folder are found too, after those of the import path.

    Raises:
        ValueError: The path is not of that form, or there is no such module or name.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise ValueError(f"{path!r}: expected an import path of the form module:name")
    found = _import_module(module_name, path)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{path}: {module_name} has no {name!r}")
        found = getattr(found, part)
    return found


def entry_point_objects(group: str) -> list[Any]:
    """Return the objects that installed packages register in a group of entry points, sorted by name."""
    return [point.load() for point in sorted(entry_points(group=group), key=lambda point: point.name)]


def _import_module(name: str, path: str) -> Any:
    folder = os.getcwd()
    is_added = folder not in sys.path
    if is_added:
        sys.path.append(folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists, but imports one that does not
        raise ValueError(
            f"{path}: no module named {error.name!r} in the current folder or on the import path"
        ) from None
    finally:
        if is_added:
            sys.path.remove(folder)
