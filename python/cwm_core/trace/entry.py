"""Run a program as Python runs it: its `__main__` module, `sys.argv`, and `sys.path`."""

from __future__ import annotations

import _thread
import builtins
import contextlib
import linecache
import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any


@dataclass(frozen=True)
class Program:
    """A program that `python PATH` or `python -m NAME` would run."""

    path: str
    """Path of the script as given, or of the module's file, which becomes `sys.argv[0]`."""
    code: CodeType
    """Compiled code of the main module."""
    module: ModuleType
    """Empty main module."""
    folder: str | None
    """First entry of `sys.path`; None if Python adds none."""

    @contextlib.contextmanager
    def in_place(self, arguments: Sequence[str]) -> Iterator[None]:
        """Set the module, arguments, and import path of the program in `sys` inside the block."""
        with shown_as(self.module), script_state([self.path, *arguments], self.folder):
            yield


def load_program(path: str | os.PathLike[str]) -> Program:
    """Load the program at a path as `python PATH` does: a script, or a folder or zip file with a `__main__.py`.

    Raises:
        OSError: The file cannot be read.
        SyntaxError: The file does not compile.
        ValueError: The folder or zip file has no `__main__.py`.
    """
    given = os.fsdecode(path)
    name = absolute(given)
    for hook in sys.path_hooks:
        with contextlib.suppress(ImportError):
            return _load_folder(given, name, hook(name))
    code = compile(SourceFileLoader("__main__", name).get_data(name), name, "exec", dont_inherit=True)
    return Program(given, code, main_module(name), script_folder(name))


def _load_folder(given: str, name: str, importer: Any) -> Program:
    """Load the program of a folder or zip file, which becomes `sys.path[0]` even under `-P`."""
    spec: ModuleSpec | None = importer.find_spec("__main__")
    code = None if spec is None or spec.loader is None else spec.loader.get_code("__main__")  # type: ignore[attr-defined]
    if spec is None or code is None:
        raise ValueError(f"{given}: expected a Python file, or a folder or zip file with a __main__.py")
    module = main_module(spec.origin or code.co_filename, spec)
    linecache.lazycache(code.co_filename, vars(module))
    return Program(given, code, module, name)


def load_module(name: str) -> Program:
    """Load the program of a module or package as `python -m NAME` does. Importing its parent packages runs them.

    Raises:
        SyntaxError: The module does not compile.
        ValueError: There is no such module, or the package has no `__main__` module.
    """
    import importlib.util  # only if needed: on some Python versions it imports `threading`

    folder = None if sys.flags.safe_path else os.getcwd()
    spec = code = None
    with script_state(sys.argv, folder):
        try:
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.submodule_search_locations is not None:
                spec = importlib.util.find_spec(f"{name}.__main__")
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # a parent package imports something that is missing
        if spec is not None and spec.loader is not None:
            code = spec.loader.get_code(spec.name)  # type: ignore[attr-defined]
    if spec is None or code is None:
        raise ValueError(
            f"{name}: expected a module, or a package with a __main__ module, in the current folder or on sys.path"
        )
    module = main_module(spec.origin or code.co_filename, spec)
    linecache.lazycache(code.co_filename, vars(module))
    return Program(module.__file__ or name, code, module, folder)


def main_module(file: str, spec: ModuleSpec | None = None) -> ModuleType:
    """Return an empty `__main__` module, as Python creates it for a script, or for a folder with this spec."""
    module = ModuleType("__main__")
    module.__package__ = None if spec is None else spec.parent
    module.__loader__ = SourceFileLoader("__main__", file) if spec is None else spec.loader
    module.__spec__ = spec
    if sys.version_info < (3, 14):  # later versions create the annotations when they are first asked for
        module.__annotations__ = {}
    vars(module).update(__builtins__=builtins, __file__=file)
    if sys.version_info < (3, 15):
        vars(module)["__cached__"] = None if spec is None else spec.cached
    return module


def named_module(name: str, file: str) -> ModuleType:
    """Return an empty module, as importing `file` under this name creates it."""
    import importlib.util  # only if needed: on some Python versions it imports `threading`

    spec = importlib.util.spec_from_file_location(name, file, loader=SourceFileLoader(name, file))
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def absolute(path: str) -> str:
    """Return the path as Python sets `__file__` of a script: absolute, but not normalized."""
    return os.path.join(os.getcwd(), path)


def script_folder(path: str) -> str | None:
    """Return the first entry of `sys.path` for a script: its real folder, or None under `-P`."""
    return None if sys.flags.safe_path else os.path.dirname(os.path.realpath(path))


@contextlib.contextmanager
def shown_as(module: ModuleType) -> Iterator[None]:
    """Put a module in `sys.modules` under its name inside the block."""
    with _replaced(sys.modules, module.__name__, module):
        yield


@contextlib.contextmanager
def script_state(arguments: list[str], folder: str | None) -> Iterator[None]:
    """Set `sys.argv` and add a folder at the front of `sys.path` inside the block."""
    path = sys.path if folder is None else [folder, *sys.path]
    with _replaced(vars(sys), "argv", arguments), _replaced(vars(sys), "path", path):
        yield


_ABSENT = object()
_lock = _thread.RLock()  # from `_thread`, because importing `threading` slows down every later fork
_values: dict[tuple[int, str], list[Any]] = {}
"""For each mapping and name, the value before all blocks, then those of the active blocks."""


@contextlib.contextmanager
def _replaced(mapping: MutableMapping[str, Any], name: str, value: Any) -> Iterator[None]:
    """Set `mapping[name]` inside the block. Blocks of threads may overlap; the last one restores the original value."""
    key = (id(mapping), name)
    with _lock:
        values = _values.setdefault(key, [mapping.get(name, _ABSENT)])
        values.append(value)
        mapping[name] = value
    try:
        yield
    finally:
        with _lock:
            del values[next(at for at in range(len(values) - 1, 0, -1) if values[at] is value)]
            if values[-1] is _ABSENT:
                mapping.pop(name, None)
            else:
                mapping[name] = values[-1]
            if len(values) == 1:
                del _values[key]
