"""Recording executions: ``record``, ``record_source``, ``Recorder``, and the ``Trace`` that they give.

`docs/concepts/trace-format.md` describes the format of a trace. The recorder is native: it reads the interpreter's
frames where they lie and leaves the program's objects alone.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import linecache
import operator
import os
import sys
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any, SupportsIndex

from cwm_core._native import ParsedTrace, Recording, RecordingLimit, Trace
from cwm_core.trace import entry, sources

__all__ = ["ParsedTrace", "Recorder", "RecordingLimit", "Trace", "record", "record_source"]

MARK = "  # << START_OF_TRACE"
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
        """Keep the options of recordings to come.

        Raises:
            TypeError: A limit is no integer.
            ValueError: The scope is neither of the two words nor a list of paths, or a limit is below its least value.
        """
        if isinstance(scope, str | bytes) and scope not in ("file", "package"):
            raise ValueError(f'scope must be "file", "package" or a list of paths, not {scope!r}')
        limits = {"max_frames": max_frames, "max_bytes": max_bytes, "max_depth": max_depth}
        counts = {name: _count(name, value) for name, value in limits.items()}
        self._scope = scope
        self._capture_output = capture_output
        self._options: dict[str, Any] = {
            **counts,
            "max_seconds": max_seconds,
            "max_value_chars": _count("max_value_chars", max_value_chars),
            "object_state": object_state,
            "calls_only": calls_only,
        }
        self._block: tuple[Recording, list[Trace], dict[str, list[str]]] | None = None
        self._snapshot: Callable[[str], Trace] | None = None
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
        recording, given = self._recording(lambda: _file_of(function))
        return self._run(recording, function, args, kwargs, given)

    def record_source(
        self, code: str, call: str, *, name: str = "__main__", file: str | os.PathLike[str] | None = None
    ) -> Trace:
        """Record the expression `call` in the module `code`, wrapped in `def main()`.

        The module body runs unrecorded. `main` takes no name of the module, which may have a `main` of its own. While
        the program runs, its module is `sys.modules[name]`.

        Args:
            code: The source of the module.
            call: The expression.
            name: `__name__` of the module. With another name than `__main__` the part under
                `if __name__ == "__main__"` does not run.
            file: The file that `code` was read from. The module gets it as `__file__`, and `Frame.lineno` counts its
                lines. Without it, line 1 is the empty line that the context begins with.

        Raises:
            SyntaxError: The code or the call does not compile.
            Exception: Whatever the module body raises.
        """
        shown, filename = _main_lines(code, call), _SOURCE_NAME
        own = _module_lines(code)
        if file is None:
            module = ModuleType(name)
        else:
            filename = entry.absolute(os.fsdecode(file))
            module = entry.main_module(filename) if name == "__main__" else entry.named_module(name, filename)
            shown, own = shown[1:], own[1:]
        main = _main_function(call, len(own), module)
        compiled = compile("".join(own), filename, "exec", dont_inherit=True)
        # So that tracebacks that the program makes show its lines, as those of a file would.
        linecache.cache[_SOURCE_NAME] = (sum(map(len, shown)), None, shown, _SOURCE_NAME)

        def context(*_: object) -> str:
            return source_context(code, call)

        with entry.shown_as(module):
            exec(compiled, vars(module))
            recording = Recording([_SOURCE_NAME, filename], [], **self._options)
            # What another recording put in linecache meanwhile is not this program.
            given = dict.fromkeys((_SOURCE_NAME, filename), shown)
            return self._run(recording, main, (), {}, given, context=context)

    def record_call(self, module: ModuleType, call: str) -> Trace:
        """Records the expression ``call`` in an imported module, wrapped in ``def main()`` at the end of its source.

        Names are the module's, which keeps the ones that it has. ``main`` and the module's file are recorded, whatever
        the scope.

        Raises:
            SyntaxError: the call does not compile.
            TypeError: the module has no source.
        """
        filename, lines = module.__file__, sources.lines_of(module.__file__ or "")
        if filename is None or not lines:
            raise TypeError(f"the module {module.__name__} has no source")
        shown = _call_lines("".join(lines), call)
        main = _main_function(call, len(shown) - call.count("\n") - 2, module)
        recording = Recording([_SOURCE_NAME, filename], [], **self._options)
        return self._run(recording, main, (), {}, {_SOURCE_NAME: shown, filename: shown})

    def record_file(self, path: str | os.PathLike[str], argv: Sequence[str] = ()) -> Trace:
        """Records a script from its module's first frame, as ``python PATH ARGV...`` runs it.

        A folder or zip file with a `__main__.py` is run as Python runs it. While the program runs, `sys.argv`,
        `sys.path`, and `sys.modules["__main__"]` are those of the script: `argv[0]` is PATH as given, and the script's
        real folder comes first in the path, unless the interpreter was started with `-P`.

        Raises:
            OSError: The file cannot be read.
            SyntaxError: The file does not compile.
            ValueError: The folder or zip file has no `__main__.py`.
        """
        if isinstance(argv, str | bytes):
            raise TypeError(f"argv: expected a list of strings, got the single {argv[:60]!r}")
        program = entry.load_program(path)
        with program.in_place(argv):
            recording, given = self._recording(lambda: program.code.co_filename)
            return self._run(recording, exec, (program.code, vars(program.module)), {}, given)

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
        recording, given = self._recording(lambda: caller.f_code.co_filename, split=True)
        traces: list[Trace] = []
        recording.start()
        self._block = (recording, traces, given)
        return traces

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Ends the block. An exception goes on, except ``RecordingLimit``, which did its work."""
        if self._block is None:
            raise RuntimeError("this recorder records no block")
        recording, traces, given = self._block
        recording.stop()
        self._block = None
        nothing = sources.nothing_recorded(recording.scope(), recording.outside())
        traces.extend(trace for trace in finish(recording, given) if len(trace) or trace.truncated)
        if not traces and error is None:
            self.warn(nothing)
        return kind is RecordingLimit

    def warn(self, message: str) -> None:
        """Warn of a recording that shows nothing, with `warnings`; a subclass may report it elsewhere."""
        level, frame = 1, sys._getframe()
        while frame.f_back is not None and frame.f_code.co_filename == __file__:
            level, frame = level + 1, frame.f_back
        warnings.warn(message, RuntimeWarning, stacklevel=level)

    def _run(
        self,
        recording: Recording,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: Mapping[str, list[str]],
        *,
        context: Callable[[str, str, int, int], str] | None = None,
    ) -> Trace:
        output = _Output() if self._capture_output else None

        def snapshot(reason: str) -> Trace:
            lines = sources.reader(recording.sources(), given)
            marked = context or functools.partial(_context, lines)
            return recording.snapshot(lines, marked, reason, None if output is None else output.text)

        self._snapshot = snapshot
        try:
            with output or contextlib.nullcontext():
                recording.run(function, args, kwargs)
        finally:
            self._snapshot = None
            nothing = sources.nothing_recorded(recording.scope(), recording.outside())
            self.last = finish(recording, given, None if output is None else output.text, context)[0]
        if not len(self.last) and not self.last.truncated:
            self.warn(nothing)
        return self.last

    def snapshot(self, reason: str) -> Trace | None:
        """Return the trace so far of a recording that runs, truncated for this reason; None while none runs.

        For when the process is about to end: the recording goes on, and any thread may ask.

        Raises:
            RuntimeError: The recorder is recording an event, as while a `__repr__` runs.
        """
        snapshot = self._snapshot
        return None if snapshot is None else snapshot(reason)

    def _recording(self, file: Callable[[], str], split: bool = False) -> tuple[Recording, dict[str, list[str]]]:
        """Return a recording of this scope, and the lines of the file `file()` that only a loader knows."""
        given: dict[str, list[str]] = {}
        if isinstance(self._scope, str):
            filename = file()
            files, folders = [filename], []
            if self._scope == "package":
                # Through a link, a file can belong to one package by its name and to another one by its place.
                paths = (os.path.abspath(filename), os.path.realpath(filename))
                folders = [folder for path in paths if (folder := _package_folder(path)) is not None]
            given = sources.lines_of_loader(filename)
        else:
            files = folders = [os.path.abspath(path) for path in self._scope]
        return Recording(files, folders, split=split, **self._options), given


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


def finish(
    recording: Recording,
    given: Mapping[str, list[str]] | None = None,
    output: str | None = None,
    context: Callable[[str, str, int, int], str] | None = None,
) -> list[Trace]:
    """Return the traces of a recording that has stopped; `given` are lines of sources, by the names of their files."""
    lines = sources.reader(recording.sources(), given or {})
    return recording.finish(lines, context or functools.partial(_context, lines), output)


def _count(name: str, value: SupportsIndex | None) -> int | None:
    """Return a limit as an integer that the recorder can count to; None where there is none.

    Raises:
        TypeError: It is no integer.
        ValueError: It is below 0, or, for `max_depth`, below 1.
    """
    if value is None:
        return None
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer or None, got {value!r}") from None
    least = int(name == "max_depth")
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")
    return min(count, sys.maxsize)


def _file_of(function: Callable[..., Any]) -> str:
    """Return the file that is the scope of recording `function`.

    Raises:
        TypeError: It cannot be told.
    """
    found: Any = function
    while isinstance(found, functools.partial):
        found = found.func
    found = inspect.unwrap(found)
    if isinstance(origin := typing.get_origin(found), type):  # Box[int]
        found = origin
    if isinstance(found, type):
        file = _file_of_class(found)
    else:
        if not hasattr(found, "__code__"):
            found = inspect.getattr_static(type(found), "__call__", None)  # an object with a method __call__
        code = _code_of(found)
        file = code and code.co_filename
    if file is None:
        raise TypeError(f"cannot tell the file of {function!r}; give Recorder(scope=[...]) the paths to record")
    return file


def _file_of_class(cls: type) -> str | None:
    """Return the file of the `class` statement, wherever `__init__` comes from: a base, or a decorator's `exec`.

    That is the file of its own functions, else of its module. Generated functions are in files such as `<string>`.
    """
    members = [value.fget if isinstance(value, property) else value for value in vars(cls).values()]
    # Anything else may be an object whose attributes run code of the program.
    functions = [member for member in members if isinstance(member, FunctionType | classmethod | staticmethod)]
    codes = [code for function in functions if (code := _code_of(function)) is not None]
    own = [code.co_filename for code in codes if code.co_qualname.startswith(cls.__qualname__ + ".")]
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return next(iter(own), file if isinstance(file, str) else None)


def _code_of(function: Any) -> CodeType | None:
    """Return the code object of a function or method, unwrapped; None for anything else."""
    with contextlib.suppress(ValueError):  # wrappers that go in a circle
        function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _package_folder(filename: str) -> str | None:
    """Return the folder of the top-level package that a file belongs to: the outermost one with an ``__init__.py``."""
    top, folder = None, os.path.dirname(filename)
    while folder != top and os.path.isfile(os.path.join(folder, "__init__.py")):
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
    marked = [line for line in lines if line.endswith(MARK + "\n")]
    # Where a program has such comments of its own, any of them may be the mark.
    kept = marked if len(marked) > 1 else []
    return [line.removesuffix(MARK + "\n") + "\n" if line in marked else line for line in lines] + kept


def last_return(frames: Sequence[Any], *, complete: bool, depth: int = 0) -> int | None:
    """Find the frame by which the entry of an execution returned.

    A trace that was cut often ends within a call, whose RETURN frame says nothing about the entry.

    Args:
        frames: Frames in order, each with `event`.
        complete: Whether the trace goes on to its end.
        depth: Activations that are open before the first frame, 1 after a prompt with the frame that calls `main()`.

    Returns:
        The index of the last frame, if that is the RETURN frame of the entry; None if the execution was cut before or
        if an exception ended it.
    """
    if not frames or frames[-1].event != "return":
        return None
    is_unwound = len(frames) > 1 and frames[-2].event == "exception" and frames[-1].arg == "None"
    open_after = depth + sum({"call": 1, "return": -1}.get(frame.event, 0) for frame in frames)
    return len(frames) - 1 if (complete or open_after == 0) and not is_unwound else None


def _main_lines(code: str, call: str) -> list[str]:
    """The module that ``record_source`` runs, by physical lines: they end at ``\\n``, ``\\r\\n`` or ``\\r`` only."""
    return io.StringIO(f"\n{code}\ndef main():\n    return {call}\n", newline=None).readlines()


def _module_lines(code: str) -> list[str]:
    """Return the lines of that module without `main`."""
    return io.StringIO(f"\n{code}\n", newline=None).readlines()


def _main_function(call: str, line: int, module: ModuleType) -> FunctionType:
    """Return `main`, which evaluates `call` in a module and whose `def` comes after line number `line`.

    It is compiled apart: no name of the module changes, and the call finds a `main` of the program's own.

    Raises:
        SyntaxError: The call does not compile.
    """
    names: dict[str, Any] = {}
    blank = "\n" * line
    exec(compile(f"{blank}def main():\n    return {call}\n", _SOURCE_NAME, "exec", dont_inherit=True), names)
    return FunctionType(names["main"].__code__, vars(module))


def _call_lines(code: str, call: str) -> list[str]:
    """The source of a module, and ``main`` after it, by physical lines."""
    end = "" if code.endswith("\n") else "\n"
    return io.StringIO(f"{code}{end}def main():\n    return {call}\n", newline=None).readlines()


def _context(source: Callable[[str], list[str]], filename: str, name: str, first_line: int, line: int) -> str:
    """The file's source with the entry marked: see CONTEXT in ``docs/concepts/trace-format.md``."""
    lines = list(source(filename))
    number = (line or first_line) if name == "<module>" else sources.def_line(lines, name, first_line)
    return _mark(lines, number)


def _mark(lines: list[str], number: int) -> str:
    """The lines as one text, the one of this number (from 1) marked as the entry."""
    if 0 < number <= len(lines):
        lines[number - 1] = lines[number - 1].rstrip("\n") + MARK + "\n"
    return "".join(lines)
