"""Find the source of recorded code, the line of its entry, and the reason if nothing was recorded."""

from __future__ import annotations

import ast
import functools
import io
import linecache
import os
import sys
import tokenize
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

_NAMED = 5
_INSTALLED = (os.path.dirname(os.__file__), os.path.join(sys.prefix, "lib"))
_OWN_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")


def reader(read: Mapping[str, bytes], given: Mapping[str, list[str]]) -> Callable[[str], list[str]]:
    """Return a function that maps the name of a file in code objects to its lines.

    Args:
        read: Contents of files as of the time the recording first entered them.
        given: Lines of files that are already known, which take precedence.
    """
    return lambda filename: given[filename] if filename in given else lines_of(filename, read.get(filename))


def lines_of(filename: str, data: bytes | None = None) -> list[str]:
    """Return the lines of a source as `linecache` does, but never those of an outdated version.

    Args:
        filename: Name of the file in code objects.
        data: Contents of the file when its code ran. None to look for the current source: in the file, through the
            loader of its module, and in entries that programs added to `linecache`.

    Returns:
        The lines, each with a newline at the end; empty if there is no source.
    """
    if data and not _is_put_into_linecache(filename):
        return _decoded(data)
    is_file = os.path.isfile(filename)
    if not is_file and os.path.exists(filename):
        return []  # a device or a FIFO, which may be endless
    if (is_file or filename.startswith("<")) and (lines := _linecache_lines(filename)):
        return lines
    if source := _loader_source(filename):
        return _physical_lines(source)
    return _linecache_lines(filename)


def lines_of_loader(filename: str) -> dict[str, list[str]]:
    """Return the lines of a source without a file, keyed by name, before its loader may disappear."""
    if os.path.isfile(filename):
        return {}
    lines = lines_of(filename)
    return {filename: lines} if lines else {}


def _linecache_lines(filename: str) -> list[str]:
    try:
        linecache.checkcache(filename)
        return linecache.getlines(filename)
    except ValueError:  # not a file name, for example because of a null byte
        return []


def _is_put_into_linecache(filename: str) -> bool:
    """Return whether a program added lines for this name to `linecache`; `linecache.checkcache` keeps those."""
    entry = linecache.cache.get(filename)
    return entry is not None and len(entry) == 4 and entry[1] is None


@functools.lru_cache(maxsize=64)  # many recordings enter the same file
def _decoded_once(data: bytes) -> tuple[str, ...]:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return tuple(_physical_lines(data.decode(encoding)))
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return ()


def _decoded(data: bytes) -> list[str]:
    return list(_decoded_once(data))


def _physical_lines(source: str) -> list[str]:
    r"""Split at `\n`, `\r\n`, and `\r` only, and end each line in a newline."""
    lines = io.StringIO(source, newline=None).readlines()
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    return lines


def _loader_source(filename: str) -> str | None:
    """Return the source of a file from the loader of its module, for example for a module in a zip file."""
    for module in list(sys.modules.values()):
        if not issubclass(type(module), ModuleType):
            continue
        names: dict[str, Any] = vars(ModuleType)["__dict__"].__get__(
            module
        )  # without running the __getattr__ of a lazy module
        spec = names.get("__spec__")
        if filename not in (_text(names.get("__file__")), _text(getattr(spec, "origin", None))):
            continue
        loader = getattr(spec, "loader", None) or names.get("__loader__")
        get_source = getattr(loader, "get_source", None)
        if get_source is None:
            continue
        try:
            source = get_source(getattr(spec, "name", None) or names.get("__name__"))
        except Exception:  # loaders can raise anything
            continue
        if isinstance(source, str):
            return source
    return None


def _text(value: object) -> str | None:
    return value if type(value) is str else None


def def_line(lines: Sequence[str], name: str, first_line: int) -> int:
    """Return the number of the line with the `def` or `class` of a code object.

    Args:
        lines: Source lines.
        name: `co_name` of the code object.
        first_line: `co_firstlineno` of the code object, which is the line of the first decorator if it has any.
    """
    name = name.removeprefix("<generic parameters of ").removesuffix(">") if name.startswith("<generic ") else name
    if name.startswith("<"):  # a lambda or comprehension, possibly inside a decorator
        return first_line
    return _decorated("".join(lines)).get((name, first_line), first_line)


@functools.lru_cache(maxsize=16)  # many traces enter the same file
def _decorated(source: str) -> dict[tuple[str, int], int]:
    """Return the `def` or `class` line of each decorated definition, by name and line of its first decorator."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler already issued them
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return {
        (node.name, node.decorator_list[0].lineno): node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.decorator_list
    }


def nothing_recorded(
    scope: Sequence[str],
    seen: Sequence[str],
    remedy: str = "To record these files, add them or their folders to the scope.",
) -> str:
    """Return the warning message for an empty recording.

    Args:
        scope: Files and folders in scope.
        seen: Files outside the scope whose code ran.
        remedy: Advice on how to record them.
    """
    seen = [name for name in seen if not name.startswith(("<frozen ", _OWN_FOLDER))]
    seen.sort(key=lambda name: name.startswith(_INSTALLED))
    ran = (
        f"Files whose code ran: {_listed(seen)}. {remedy}"
        if seen
        else "No other Python code ran, for example because a cached value or an unstarted generator was returned."
    )
    return f"no frames were recorded: no code in scope ({_listed(scope)}) ran on this thread. {ran}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
