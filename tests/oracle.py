"""The oracle: the expected frames of a recording, from a plain `sys.settrace` tracer that shares no code with ours."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import inspect
import io
import json
import linecache
import re
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

# On 3.12.0 and 3.12.1 the interpreter writes f_locals back after each call of a Python tracer, also to the variables of
# comprehensions in the bodies of classes and modules, which breaks them. It does not after that of a C function.
BROKEN_COMPREHENSIONS = sys.version_info[:3] in ((3, 12, 0), (3, 12, 1))


class OracleFrame(NamedTuple):
    event: str
    locals: dict[str, str] | None
    line: str
    arg: str | None


class NoVerdictError(BaseException):
    """The tracer itself disturbed the program: nothing can be compared."""


class _Full(Exception):
    pass


class _Text:
    """Collects text and stops when it is longer than the limit."""

    def __init__(self, limit: int) -> None:
        self.text, self.limit = "", limit

    def add(self, part: str) -> None:
        self.text += part
        if len(self.text) > self.limit:
            raise _Full


def render(value: Any, limit: int = 1000) -> str:
    out = _Text(limit)
    try:
        _render(value, [], out)
    except _Full:
        return out.text[:limit] + "..."
    return out.text


_SHAPES = {
    list: ("[", "]", "[...]"),
    tuple: ("(", ")", "(...)"),
    dict: ("{", "}", "{...}"),
    set: ("{", "}", "set(...)"),
    frozenset: ("frozenset({", "})", "frozenset(...)"),
}


def _render(value: Any, around: list[Any], out: _Text) -> None:
    kind = type(value)
    if kind not in _SHAPES:
        out.add(_leaf(value))
        return
    opening, closing, recursion = _SHAPES[kind]
    if kind in (set, frozenset) and not value:
        opening, closing = kind.__name__ + "(", ")"
    if any(value is outer for outer in around):
        out.add(recursion)
    elif len(around) == 200:
        out.add("...")
    else:
        out.add(opening)
        around = [*around, value]
        elements = list(value.items()) if kind is dict else list(value)
        for i, element in enumerate(elements):
            if i:
                out.add(", ")
            if kind is dict:
                _render(element[0], around, out)
                out.add(": ")
                _render(element[1], around, out)
            else:
                _render(element, around, out)
        if kind is tuple and len(elements) == 1:
            out.add(",")
        out.add(closing)


def _leaf(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError as error:
        raise NoVerdictError from error
    except Exception:
        return f"<{type(value).__name__} object>"
    if type(value) in (str, bytes):
        return text
    return re.sub(" at 0x[0-9a-fA-F]+", "", text)


class Tracer:
    """A ``sys.settrace`` function for the files that ``in_scope`` accepts."""

    def __init__(self, in_scope: Any, limit: int = 1000, max_frames: int = 1_000_000) -> None:
        self.in_scope, self.limit, self.max_frames = in_scope, limit, max_frames
        self.frames: list[OracleFrame] = []
        self.disturbed = False
        self.from_c = False
        self.before: dict[int, dict[str, str]] = {}

    def __call__(self, frame: Any, event: str, arg: Any) -> Any:
        if not self.in_scope(frame.f_code.co_filename):
            return None
        if event == "opcode":
            return self
        sys.settrace(None)  # __repr__ runs unrecorded
        try:
            if len(self.frames) >= self.max_frames:
                raise NoVerdictError
            self.frames.append(self.shown(frame, event, arg))
        except BaseException:
            self.disturbed = True  # the program may swallow the exception
            raise
        finally:
            sys.settrace(self)
        return self

    def see(self, frame: Any, event: str, arg: Any) -> None:
        """Trace an event from C, where nothing can be raised in the program."""
        if not self.in_scope(frame.f_code.co_filename) or self.disturbed:
            return
        try:
            if len(self.frames) >= self.max_frames:
                raise NoVerdictError
            self.frames.append(self.shown(frame, event, arg))
        except BaseException:
            self.disturbed = True

    def shown(self, frame: Any, event: str, arg: Any) -> OracleFrame:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0)  # some instructions have no line
        if line and not line.endswith("\n"):
            line += "\n"
        if event in ("return", "exception"):
            value = arg if event == "return" else arg[1]
            if event == "exception" and isinstance(value, RecursionError):
                raise NoVerdictError
            if event == "return":
                self.before.pop(id(frame), None)
            return OracleFrame(event, None, line, render(value, self.limit))
        if not self.from_c and _is_broken(frame.f_code):
            raise NoVerdictError
        now = {name: render(value, self.limit) for name, value in _variables(frame).items()}
        before = self.before.get(id(frame), {}) if event == "line" else {}
        names = [name for name in before if name in now] + [name for name in now if name not in before]
        self.before[id(frame)] = {name: now[name] for name in names}
        written = {name: ".." if name in before and before[name] == now[name] else now[name] for name in names}
        return OracleFrame(event, written, line, None)


def _variables(frame: Any) -> dict[str, Any]:
    code = frame.f_code
    in_function = code.co_flags & inspect.CO_OPTIMIZED
    names = dict(frame.f_locals)
    if in_function:
        slots = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
        return {name: value for name, value in names.items() if name in slots}
    return {name: value for name, value in names.items() if isinstance(name, str) and not name.startswith("__")}


def _drive(call: Callable[[], Any]) -> Any:
    result = call()
    if inspect.isgenerator(result):
        for _ in result:
            pass
    elif inspect.iscoroutine(result):
        return asyncio.run(result)
    return result


_C_FUNCTION = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_EVENTS = ("call", "exception", "line", "return")


@_C_FUNCTION
def _trace_from_c(tracer: int, frame: int, event: int, arg: int | None) -> int:
    """Call the tracer as the interpreter would, which here runs no code of the program traced meanwhile."""
    object_at = lambda address: ctypes.cast(address, ctypes.py_object).value  # noqa: E731
    if event < len(_EVENTS):
        object_at(tracer).see(object_at(frame), _EVENTS[event], object_at(arg) if arg else None)
    return 0


def _is_broken(code: CodeType) -> bool:
    """Return whether a Python tracer would break it."""
    in_body = BROKEN_COMPREHENSIONS and not code.co_flags & inspect.CO_OPTIMIZED
    return bool(in_body and {*code.co_varnames, *code.co_cellvars} - {"__class__"})


def _is_broken_within(code: CodeType) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return _is_broken(code) or any(map(_is_broken_within, inner))


def _set_trace(tracer: Tracer) -> None:
    if tracer.from_c:
        set_trace = ctypes.pythonapi.PyEval_SetTrace
        set_trace.argtypes, set_trace.restype = (_C_FUNCTION, ctypes.py_object), None
        set_trace(_trace_from_c, tracer)
    else:
        sys.settrace(tracer)


def call_traced(tracer: Tracer, call: Callable[[], Any]) -> Any:
    previous = sys.gettrace()
    _set_trace(tracer)
    try:
        return _drive(call)
    finally:
        # Another trace function, or none since the stack was too deep to call the tracer.
        tracer.disturbed |= sys.gettrace() is not tracer
        sys.settrace(previous)


def trace(tracer: Tracer, call: Callable[[], Any]) -> list[OracleFrame]:
    with contextlib.suppress(Exception):
        call_traced(tracer, call)
    return tracer.frames


def record(function: Any, *args: Any, limit: int = 1000, **kwargs: Any) -> list[OracleFrame]:
    filename = inspect.unwrap(function).__code__.co_filename
    return trace(Tracer(lambda name: name == filename, limit), lambda: function(*args, **kwargs))


@contextlib.contextmanager
def running_main(code: str, call: str) -> Iterator[Callable[[], Any]]:
    """The function ``main`` that ``record_source`` runs, compiled apart, while the program's module is ``__main__``."""
    lines = io.StringIO(f"\n{code}\ndef main():\n    return {call}\n", newline=None).readlines()
    linecache.cache["<cwm>"] = (sum(map(len, lines)), None, lines, "<cwm>")
    own = io.StringIO(f"\n{code}\n", newline=None).readlines()
    names: dict[str, Any] = {}
    exec(compile("\n" * len(own) + f"def main():\n    return {call}\n", "<cwm>", "exec", dont_inherit=True), names)
    module, before = ModuleType("__main__"), sys.modules["__main__"]
    main = FunctionType(names["main"].__code__, vars(module))
    sys.modules["__main__"] = module
    try:
        exec(compile("".join(own), "<cwm>", "exec", dont_inherit=True), vars(module))
        yield main
    finally:
        sys.modules["__main__"] = before


def record_source(code: str, call: str, limit: int = 1000, max_frames: int = 1_000_000) -> list[OracleFrame]:
    tracer = Tracer("<cwm>".__eq__, limit, max_frames)
    tracer.from_c = _is_broken_within(compile(code, "<cwm>", "exec", dont_inherit=True))
    with running_main(code, call) as main:
        frames = trace(tracer, main)
    if tracer.from_c and tracer.disturbed:
        raise NoVerdictError
    return frames


def record_module(path: str) -> list[OracleFrame]:
    """The body of a module in a file."""
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    tracer = Tracer(path.__eq__)
    tracer.from_c = _is_broken_within(code)
    frames = trace(tracer, lambda: exec(code, {"__name__": "__main__", "__file__": path}))
    if tracer.from_c and tracer.disturbed:
        raise NoVerdictError
    return frames


def record_call(module: ModuleType, call: str, limit: int = 1000, max_frames: int = 1_000_000) -> list[OracleFrame]:
    """A call in an imported module, from a ``main`` at the end of its source."""
    filename = module.__file__ or ""
    lines = [*linecache.getlines(filename), "def main():\n", f"    return {call}\n"]
    linecache.cache["<cwm>"] = (sum(map(len, lines)), None, lines, "<cwm>")
    names: dict[str, Any] = {}
    exec(compile("\n" * (len(lines) - 2) + "".join(lines[-2:]), "<cwm>", "exec", dont_inherit=True), names)
    main = FunctionType(names["main"].__code__, vars(module))
    return trace(Tracer({filename, "<cwm>"}.__contains__, limit, max_frames), main)


# Whole, or without its beginning where reprlib has cut the middle out of the repr of an object.
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+|(?<=\.\.\.)0?x?[0-9a-fA-F]+(?=>)")


def without_addresses(frame: OracleFrame) -> OracleFrame:
    """The frame without the addresses that a program has put into strings: no two runs need agree on them."""

    def stripped(text: str | None) -> str | None:
        return text and _ADDRESS.sub("0x", text)

    variables = frame.locals and {name: stripped(value) for name, value in frame.locals.items()}
    return OracleFrame(frame.event, variables, frame.line, stripped(frame.arg))


def frame_text(frame: OracleFrame) -> str:
    head = f"<|{frame.event}_sep|>" + ("" if frame.locals is None else json.dumps(frame.locals))
    value = "" if frame.arg is None else "<|arg_sep|>" + json.dumps(frame.arg)
    return f"{head}<|action_sep|>{frame.line}{value}<|frame_sep|>"
