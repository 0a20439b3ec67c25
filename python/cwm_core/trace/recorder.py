"""Recording executions: ``record``, ``record_source``, ``Recorder``, and the ``Trace`` that they give.

The format of a trace is described in ``docs/trace-format.md``. The recorder is native: it reads the interpreter's
frames where they lie and leaves the program's objects alone.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import io
import linecache
import os
import sys
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any

from cwm_core._native import ParsedTrace, Recording, RecordingLimit, Trace

__all__ = ["ParsedTrace", "Recorder", "RecordingLimit", "Trace", "record", "record_source"]

_MARK = "  # << START_OF_TRACE"
_SOURCE_NAME = "<cwm>"


class Recorder:
    """Records executions; the options of a recording live here.

    Args:
        scope: which code is recorded. ``"file"``: the file of the recorded function, or of the ``with`` block.
            ``"package"``: any file under its top-level package. A list of paths: any file that is one of them or lies
            under one of them.
        max_frames: a trace ends after this many frames.
        max_bytes: a trace ends when its frames take this many bytes of memory.
        max_seconds: a recording ends after this many seconds.
        max_value_chars: a value's text is cut after this many characters, at most 2**28, and ``...`` added.
        object_state: instances without a ``__repr__`` of their own are shown with their attributes, as a dataclass is:
            ``Point(x=1, y=2)`` instead of ``<__main__.Point object>``. No code of theirs runs; instances that keep
            their attributes without a dict get one, as by ``vars``.
        capture_output: what the program prints on ``sys.stdout`` is kept in ``Trace.output`` instead of being printed.
            Not in a ``with`` block, which gives many traces.
        calls_only: only calls and returns are recorded, as ``Trace.coarsen(calls_only=True)`` has it, at a fraction of
            the time and memory.
        max_depth: calls nested deeper than this are left out, as by ``Trace.coarsen(max_depth=...)``.

    At a limit the program is stopped by ``RecordingLimit`` (outside ``Exception``), raised again at each further event
    in scope; the trace holds what was recorded before, and ``Trace.truncated`` names the limit.

    Only the calling thread is recorded, one recording at a time; a second one on the same thread is a ``RuntimeError``.
    """

    def __init__(
        self,
        *,
        scope: str | Sequence[str | os.PathLike[str]] = "file",
        max_frames: int | None = None,
        max_bytes: int | None = None,
        max_seconds: float | None = None,
        max_value_chars: int = 1000,
        object_state: bool = False,
        capture_output: bool = False,
        calls_only: bool = False,
        max_depth: int | None = None,
    ) -> None:
        """Raises ValueError for a scope that is neither of the two words nor a list of paths."""
        if isinstance(scope, str | bytes) and scope not in ("file", "package"):
            raise ValueError(f'scope must be "file", "package" or a list of paths, not {scope!r}')
        self._scope = scope
        self._capture_output = capture_output
        self._options: dict[str, Any] = {
            "max_frames": max_frames,
            "max_bytes": max_bytes,
            "max_seconds": max_seconds,
            "max_value_chars": max_value_chars,
            "object_state": object_state,
            "calls_only": calls_only,
            "max_depth": max_depth,
        }
        self._block: tuple[Recording, list[Trace]] | None = None
        self.last: Trace | None = None
        """The trace of the last ``record``, ``record_source`` or ``record_file``, also when it was interrupted."""

    def record(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Trace:
        """Records ``function(*args, **kwargs)``.

        A generator function is run to its end, a coroutine function to its result. What the program raises is its
        outcome (``Trace.exception``).

        Raises:
            KeyboardInterrupt: the recording was interrupted; ``last`` holds what was recorded.
            TypeError: the file of ``function`` cannot be told, and the scope is no list of paths.
        """
        recording = self._recording(lambda: _code_of(function))
        return self._run(recording, function, args, kwargs)

    def record_source(self, code: str, call: str) -> Trace:
        """Records the expression ``call`` in the module ``code``, wrapped in ``def main()``.

        The module body runs unrecorded, with ``__name__ == "__main__"``.

        Raises:
            SyntaxError: the code or the call does not compile.
            Exception: whatever the module body raises.
        """
        lines = _main_lines(code, call)
        compiled = compile("".join(lines), _SOURCE_NAME, "exec", dont_inherit=True)
        # So that tracebacks that the program makes show its lines, as those of a file would.
        linecache.cache[_SOURCE_NAME] = (sum(map(len, lines)), None, lines, _SOURCE_NAME)
        module: dict[str, Any] = {"__name__": "__main__"}
        exec(compiled, module)
        recording = Recording([_SOURCE_NAME], [], **self._options)

        def own_lines(filename: str) -> list[str]:
            # What another recording put in linecache meanwhile is not this program.
            return lines if filename == _SOURCE_NAME else _lines(filename)

        return self._run(recording, module["main"], (), {}, own_lines)

    def record_call(self, module: ModuleType, call: str) -> Trace:
        """Records the expression ``call`` in an imported module, wrapped in ``def main()`` at the end of its source.

        Names are the module's, which keeps the ones that it has. ``main`` and the module's file are recorded, whatever
        the scope.

        Raises:
            SyntaxError: the call does not compile.
            TypeError: the module has no source.
        """
        filename, lines = module.__file__, linecache.getlines(module.__file__ or "")
        if filename is None or not lines:
            raise TypeError(f"the module {module.__name__} has no source")
        shown = _call_lines("".join(lines), call)
        blank = "\n" * (len(shown) - call.count("\n") - 2)
        names: dict[str, Any] = {}
        exec(compile(f"{blank}def main():\n    return {call}\n", _SOURCE_NAME, "exec", dont_inherit=True), names)
        main = FunctionType(names["main"].__code__, vars(module))  # whose own main, if any, the call finds
        recording = Recording([_SOURCE_NAME, filename], [], **self._options)

        def own_lines(name: str) -> list[str]:
            return shown if name in (_SOURCE_NAME, filename) else _lines(name)

        return self._run(recording, main, (), {}, own_lines)

    def record_file(self, path: str | os.PathLike[str], argv: Sequence[str] = ()) -> Trace:
        """Records a script from its module's first frame, as ``python PATH ARGV...`` runs it.

        Raises:
            OSError: the file cannot be read.
            SyntaxError: the file does not compile.
        """
        if isinstance(argv, str | bytes):
            raise TypeError(f"argv: expected a list of strings, got the single {argv[:60]!r}")
        name = os.path.abspath(path)
        with open(name, "rb") as file:  # from here, so that this reading is told from the program's
            compiled = compile(file.read(), name, "exec", dont_inherit=True)
        module = ModuleType("__main__")
        vars(module).update(__file__=name, __builtins__=__builtins__)
        old_argv, old_path, old_main = sys.argv, sys.path, sys.modules["__main__"]
        sys.argv, sys.path, sys.modules["__main__"] = [name, *argv], [os.path.dirname(name), *old_path], module
        try:
            return self._run(self._recording(lambda: compiled), exec, (compiled, vars(module)), {})
        finally:
            sys.argv, sys.path, sys.modules["__main__"] = old_argv, old_path, old_main

    def __enter__(self) -> list[Trace]:
        """Begins to record the activations that begin on this thread inside the block.

        Gives a list, filled when the block ends: one trace for each outermost activation in scope.

        Raises:
            RuntimeError: this recorder, or another one on this thread, already records.
            ValueError: the recorder is one with ``capture_output``.
        """
        if self._capture_output:
            raise ValueError("a block gives many traces: its output belongs to none; capture_output is for calls")
        if self._block is not None:
            raise RuntimeError("this recorder already records a block")
        caller = sys._getframe(1)
        recording = self._recording(lambda: caller.f_code, split=True)
        traces: list[Trace] = []
        recording.start()
        self._block = (recording, traces)
        return traces

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Ends the block. An exception goes on, except ``RecordingLimit``, which did its work."""
        if self._block is None:
            raise RuntimeError("this recorder records no block")
        recording, traces = self._block
        recording.stop()
        self._block = None
        traces.extend(trace for trace in finish(recording) if len(trace) or trace.truncated)
        return kind is RecordingLimit

    def _run(
        self,
        recording: Recording,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        lines: Callable[[str], list[str]] | None = None,
    ) -> Trace:
        lines = lines or _lines
        output = _Output() if self._capture_output else None
        try:
            with output or contextlib.nullcontext():
                recording.run(function, args, kwargs)
        finally:
            self.last = recording.finish(lines, functools.partial(_context, lines), output and output.text)[0]
        return self.last

    def _recording(self, entry: Callable[[], CodeType], split: bool = False) -> Recording:
        if isinstance(self._scope, str):
            filename = entry().co_filename
            folder = _package_folder(filename) if self._scope == "package" else None
            files, folders = [filename], [folder] if folder else []
        else:
            files = [os.path.abspath(path) for path in self._scope]
            folders = files
        return Recording(files, [os.path.join(folder, "") for folder in folders], split=split, **self._options)


class _Output:
    """Stands in for ``sys.stdout`` and keeps what is written to it, through whatever layer."""

    class _Bytes(io.BytesIO):
        def close(self) -> None:
            """A program that closes its output does not take away what it printed."""

    def __enter__(self) -> None:
        self._bytes = self._Bytes()
        self._stream = io.TextIOWrapper(self._bytes, "utf-8", "backslashreplace", newline="\n", write_through=True)
        self._previous, sys.stdout = sys.stdout, self._stream

    def __exit__(self, *error: object) -> None:
        sys.stdout = self._previous
        with contextlib.suppress(ValueError):  # the program closed it
            self._stream.flush()

    @property
    def text(self) -> str:
        return self._bytes.getvalue().decode("utf-8", "replace")


def record(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Trace:
    """Records ``function(*args, **kwargs)``, code of its own file, without limits: ``Recorder().record``."""
    return Recorder().record(function, *args, **kwargs)


def record_source(code: str, call: str) -> Trace:
    """Records the expression ``call`` in the module ``code``, without limits: ``Recorder().record_source``."""
    return Recorder().record_source(code, call)


def finish(recording: Recording) -> list[Trace]:
    """The traces of a recording that has stopped, with the sources as they are in files now."""
    return recording.finish(_lines, functools.partial(_context, _lines))


def _code_of(function: Callable[..., Any]) -> CodeType:
    """The code object whose file is the scope of recording ``function``."""
    found: Any = function
    while isinstance(found, functools.partial):
        found = found.func
    found = inspect.unwrap(found)
    if isinstance(found, type):
        found = found.__init__
    elif not hasattr(found, "__code__"):
        found = inspect.getattr_static(type(found), "__call__", None)  # an object with a method __call__
    code = getattr(found, "__code__", None)
    if not isinstance(code, CodeType):
        raise TypeError(f"cannot tell the file of {function!r}; give Recorder(scope=[...]) the paths to record")
    return code


def _package_folder(filename: str) -> str | None:
    """The folder of the top-level package that a file belongs to: the outermost one with an ``__init__.py``."""
    top, folder = None, os.path.dirname(filename)
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        top, folder = folder, os.path.dirname(folder)
    return top


def source_context(code: str, call: str) -> str:
    """The context of ``record_source(code, call)``, without running anything."""
    lines = _main_lines(code, call)
    return _mark(lines, len(lines) - str(call).count("\n") - 1)


def call_context(code: str, call: str) -> str:
    """The context of ``record_call`` in a module of the source ``code``, without running anything."""
    lines = _call_lines(code, call)
    return _mark(lines, len(lines) - str(call).count("\n") - 1)


def source_lines(context: str) -> list[str]:
    """The lines of a context as actions show them: each ends in a newline, none carries the mark of the entry."""
    lines = [line + "\n" for line in context.removesuffix("\n").split("\n")] if context else []
    marked = [line for line in lines if line.endswith(_MARK + "\n")]
    # Where a program has such comments of its own, any of them may be the mark.
    kept = marked if len(marked) > 1 else []
    return [line.removesuffix(_MARK + "\n") + "\n" if line in marked else line for line in lines] + kept


def _main_lines(code: str, call: str) -> list[str]:
    """The module that ``record_source`` runs, by physical lines: they end at ``\\n``, ``\\r\\n`` or ``\\r`` only."""
    return io.StringIO(f"\n{code}\ndef main():\n    return {call}\n", newline=None).readlines()


def _call_lines(code: str, call: str) -> list[str]:
    """The source of a module, and ``main`` after it, by physical lines."""
    end = "" if code.endswith("\n") else "\n"
    return io.StringIO(f"{code}{end}def main():\n    return {call}\n", newline=None).readlines()


def _lines(filename: str) -> list[str]:
    return linecache.getlines(filename)


def _context(source: Callable[[str], list[str]], filename: str, name: str, first_line: int, line: int) -> str:
    """The file's source with the entry marked: see CONTEXT in ``docs/trace-format.md``."""
    lines = list(source(filename))
    number = (line or first_line) if name == "<module>" else _def_line(lines, name, first_line)
    return _mark(lines, number)


def _mark(lines: list[str], number: int) -> str:
    """The lines as one text, the one of this number (from 1) marked as the entry."""
    if 0 < number <= len(lines):
        lines[number - 1] = lines[number - 1].rstrip("\n") + _MARK + "\n"
    return "".join(lines)


def _def_line(lines: list[str], name: str, first_line: int) -> int:
    """The line of the ``def`` of a function whose code begins at ``first_line``, maybe with its decorators."""
    begins_with_decorator = 0 < first_line <= len(lines) and lines[first_line - 1].lstrip().startswith("@")
    if name == "<lambda>" or not begins_with_decorator:
        return first_line
    return _decorated("".join(lines)).get((name, first_line), first_line)


@functools.lru_cache(maxsize=16)  # many traces enter a file
def _decorated(source: str) -> dict[tuple[str, int], int]:
    """The lines of ``def`` or ``class`` of what has decorators, by its name and the line of the first one."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return {}
    return {
        (node.name, node.decorator_list[0].lineno): node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.decorator_list
    }
