"""The recorder equals the oracle frame for frame, and leaves programs as they are."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from typing import ClassVar

import cwm_core as cwm
import oracle
import pytest
from cwm_core._native import Recording


def written(trace: cwm.Trace) -> list[oracle.OracleFrame]:
    return [oracle.OracleFrame(f.event, f.locals, f.line, f.arg) for f in trace.frames]


def assert_as_oracle(code: str, call: str, limit: int = 1000) -> cwm.Trace:
    expected = oracle.record_source(code, call, limit)
    trace = cwm.Recorder(max_value_chars=limit).record_source(code, call)
    for i, (ours, theirs) in enumerate(zip(written(trace), expected, strict=False)):
        assert ours == theirs, f"frame {i}"
    assert len(trace) == len(expected)
    return trace


PROGRAMS = {
    "loop": ("def f(n):\n    s = 'a'\n    while n:\n        n -= 1\n    return s * 2\n", "f(3)"),
    "one line loop": ("def f(n):\n    t = 0\n    for i in range(n): t += i\n    return t\n", "f(4)"),
    "recursion": ("def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\n", "f(6)"),
    "deep recursion": ("def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\n", "f(150)"),
    "generator": (
        """
        def g(n):
            for i in range(n):
                got = yield i
                seen = got
            return 'done'
        def f():
            it = g(3)
            out = [next(it), it.send('hello')]
            for value in it:
                out.append(value)
            return out
        """,
        "f()",
    ),
    "yield from": (
        """
        def inner():
            x = yield 1
            return x
        def outer():
            r = yield from inner()
            yield r
        """,
        "list(outer())",
    ),
    "throw and close": (
        """
        def g():
            try:
                yield 1
            except ValueError as error:
                z = 2
                yield z
            finally:
                last = 3
        def f():
            it = g()
            next(it)
            r = it.throw(ValueError('x'))
            it.close()
            return r
        """,
        "f()",
    ),
    "generators dropped and closed before their ends": (
        """
        def g(log):
            try:
                log.append((yield 1))
            finally:
                log.append('end')
        def h(log):
            try:
                yield from g(log)
            except GeneratorExit as error:
                log.append(type(error).__name__)
        def f():
            log = []
            for make in (g, h):
                for started in (False, True):
                    for end in (list.pop, lambda only: only[0].close()):
                        only = [make(log)]
                        if started:
                            only[0].send(None)
                        end(only)
                        only.clear()
            return log
        """,
        "f()",
    ),
    "exceptions": (
        """
        def f(n):
            try:
                if n == 0:
                    raise ValueError('bad')
                return f(n - 1)
            except ValueError as error:
                raise KeyError(n) from error
            finally:
                z = 1
        """,
        "f(2)",
    ),
    "exception group": (
        """
        def f():
            try:
                raise ExceptionGroup('g', [ValueError(1), TypeError(2)])
            except* ValueError as group:
                a = len(group.exceptions)
            except* TypeError:
                b = 2
            return a, b
        """,
        "f()",
    ),
    "classes": (
        """
        class P:
            def __init__(self, x):
                self.x = x
            def __repr__(self):
                return f'P({self.x})'
        def f():
            p = P(1)
            p.x = 2
            class Q(P):
                a = 1
                def m(self):
                    return super().__repr__()
                b = m
                del a
            q = Q(5)
            o = object()
            return q.m()
        """,
        "f()",
    ),
    "comprehensions": (
        """
        def f(n):
            a = [i * i for i in range(n)]
            b = {k: v for k, v in enumerate(a)}
            c = [lambda: j for j in range(2)]
            d = [[p * q for p in range(2)] for q in range(2)]
            del a
            a = sum(x for x in b)
            return sorted(b, key=lambda t: -t), a, c[0]()
        """,
        "f(3)",
    ),
    "coroutine": (
        """
        import asyncio
        async def h(i):
            await asyncio.sleep(0)
            return i
        async def numbers():
            for i in range(2):
                yield i
        async def f():
            r = 0
            for i in range(3):
                r += await h(i)
            async for i in numbers():
                r += i
            return r
        """,
        "f()",
    ),
    "closure": (
        """
        def f():
            n = 0
            def inc(k):
                nonlocal n
                n += k
                return n
            inc(1)
            inc(2)
            return n
        """,
        "f()",
    ),
    "cell that is no cell": (
        """
        import types
        def f(c, d):
            def g():
                return d
            return g().cell_contents
        """,
        "f(types.CellType(1), types.CellType([2]))",
    ),
    "with": (
        """
        import contextlib
        @contextlib.contextmanager
        def m(x):
            try:
                yield x
            finally:
                y = x
        def f():
            with m(1) as a, m(2) as b:
                c = a + b
            return c
        """,
        "f()",
    ),
    "decorators": (
        """
        import functools
        def twice(
            function,
        ):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs) * 2
            return wrapper
        @twice
        @functools.lru_cache(
            maxsize=None,
        )
        def f(n):
            return n
        """,
        "f(3)",
    ),
    "match": (
        """
        def f(v):
            match v:
                case {'a': [x, *rest], **others}:
                    return x, rest, others
                case _:
                    return None
        """,
        "f({'a': [1, 2, 3], 'b': 4})",
    ),
    "exec": ("def f():\n    d = {}\n    exec('q = [i for i in range(2)]', d)\n    return d['q']\n", "f()"),
    "walrus and del": ("def f():\n    if (n := 3) > 2:\n        m = n\n    del n\n    n = [m]\n    return n\n", "f()"),
    "same value, other object": (
        "def f():\n    a = [1]\n    a = [1]\n    b = 1\n    b = True\n    b = 1.0\n    return b\n",
        "f()",
    ),
    "text equal to unchanged": (
        "class D:\n    def __repr__(self):\n        return '..'\ndef f():\n    d = D()\n    d = '..'\n    return d\n",
        "f()",
    ),
    "repr that raises": (
        "class D:\n    def __repr__(self):\n        1 / 0\ndef f():\n    d = [D(), 1]\n    return d\n",
        "f()",
    ),
    "repr that changes its list": (
        """
        class D:
            def __repr__(self):
                items.clear()
                return 'D'
        items = []
        def f():
            local = items
            local += [1, D(), 2, D(), 3]
            return len(local)
        """,
        "f()",
    ),
    "values": (
        """
        def f():
            a = [1.5, -0.0, 1e16, 1e-5, float('inf'), float('nan'), 123456789012345678, 1e22]
            b = (1,), (), [], {}, set(), frozenset(), frozenset({1}), {2}
            c = 'it\\'s', "both ' and \\"", 'tab\\t\\x00\\x7f', 'é\\u2028\\ud800😀', b'\\x00"\\xff\\''
            d = 2 ** 100, -(2 ** 63), 2 ** 63, True, None, ..., 3j, range(1, 9, 2), int, len
            e = []
            e.append(e)
            g = {'self': e}
            g['g'] = g
            h = [f, lambda: 0, object()]
            i = 10 ** 5000
            return 0
        """,
        "f()",
    ),
    "long values": (
        """
        def f():
            a = 'x' * 5000
            b = list(range(10 ** 5))
            c = 'é' * 5000
            d = '"' * 999 + "'" * 99
            return {1: b}
        """,
        "f()",
    ),
    "deep value": ("def f():\n    a = []\n    for i in range(250):\n        a = [a]\n    return a\n", "f()"),
    "module level lambda": ("g = lambda x: x + 1\n", "g(1)"),
    "no newline at the end": ("def f():\n    return 1", "f()"),
    "carriage returns": ("def f():\r\n    a = 1\r    return a\r\n", "f()"),
    "raises": ("def f(x):\n    return x.missing\n", "f(1)"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_equals_oracle(name: str) -> None:
    code, call = PROGRAMS[name]
    code = textwrap.dedent(code)
    assert_as_oracle(code, call)
    for limit in (0, 1, 7, 40):
        assert_as_oracle(code, call, limit)


def test_class_body_comprehension() -> None:
    code = "def f():\n    class Q:\n        a = 2\n        b = [i for i in range(3)]\n        c = 1\n    return Q.b\n"
    assert_as_oracle(code, "f()")


def test_a_repr_that_rebinds_a_variable() -> None:
    """The state shown is the one before the `__repr__` ran. (On 3.11 and 3.12 a Python tracer undoes the rebinding.)"""
    code = """
def f():
    b = [1]
    class R:
        def __repr__(self):
            nonlocal b
            b = None
            return 'R'
    a = R()
    c = 1
    return c
"""
    shown = [
        (frame.locals["a"], frame.locals["b"])
        for frame in cwm.record_source(code, "f()").frames
        if frame.locals and "a" in frame.locals
    ]
    assert shown == [("R", ".."), ("..", "None")]


def test_oracle_is_the_published_one() -> None:
    path = Path(__file__).parents[3] / "shared" / "trace_oracle.py"
    if not path.is_file():
        pytest.skip("the published oracle is not beside this checkout")
    spec = importlib.util.spec_from_file_location("trace_oracle", path)
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    for name, (source, call) in PROGRAMS.items():
        code = textwrap.dedent(source)
        context, frames = published.record_source(code, call)
        assert [tuple(frame) for frame in oracle.record_source(code, call)] == frames, name
        trace = cwm.record_source(code, call)
        if name != "carriage returns":
            assert trace.context == context, name
        if all(f.locals is None or ".." not in f.locals.values() for f in trace.frames):
            assert trace.to_text() == published.to_text(context, frames), name


def test_order_is_of_first_appearance() -> None:
    code = "def f():\n    b = 1\n    a = 2\n    del b\n    c = 3\n    b = 4\n    return\n"
    frames = cwm.record_source(code, "f()").frames
    assert list(frames[-3].locals) == ["a", "c", "b"]


def add(a: int, b: int = 2) -> int:
    total = a + b
    return total


def count(n: int):
    for i in range(n):  # noqa: UP028
        yield i


async def waits() -> int:
    return 7


def fails() -> None:
    raise LookupError("gone")


def test_record_a_function() -> None:
    trace = cwm.record(add, 1, b=5)
    assert written(trace) == oracle.record(add, 1, b=5)
    assert trace.result == "6" and trace.exception is None and trace.truncated is None
    assert trace.frames[1].lineno == add.__code__.co_firstlineno + 1
    marked = [line for line in trace.context.splitlines() if line.endswith("  # << START_OF_TRACE")]
    assert marked == ["def add(a: int, b: int = 2) -> int:  # << START_OF_TRACE"]


def test_record_generators_coroutines_and_failures() -> None:
    assert written(cwm.record(count, 2)) == oracle.record(count, 2)
    assert written(cwm.record(waits)) == oracle.record(waits)
    trace = cwm.record(fails)
    assert written(trace) == oracle.record(fails)
    assert trace.exception == "LookupError('gone')" and trace.result is None


def test_record_a_block() -> None:
    with cwm.Recorder() as traces:
        add(1)
        list(count(1))
    first = [(trace.frames[0].event, trace.frames[0].line.split("(")[0]) for trace in traces]
    assert first == [("call", "def add"), ("call", "def count"), ("call", "        yield i\n")]
    assert written(traces[0]) == oracle.record(add, 1)


def caught() -> None:
    with contextlib.suppress(LookupError):
        fails()


@pytest.mark.parametrize("options", [{}, {"calls_only": True}, {"max_depth": 1}])
def test_traces_of_a_block_have_their_outcomes(options: dict) -> None:
    with cwm.Recorder(**options) as traces:
        add(1)
        list(count(1))
        caught()
        with contextlib.suppress(LookupError):
            fails()
    outcomes = [(trace.result, trace.exception) for trace in traces]
    expected = (
        (cwm.record(add, 1).result, None),
        ("0", None),
        ("None", None),
        ("None", None),
        (None, "LookupError('gone')"),
    )
    assert outcomes == list(expected)
    parsed = [cwm.Trace.parse(trace.to_text()).trace for trace in traces]
    assert [(trace.result, trace.exception) for trace in parsed] == outcomes


def test_a_truncated_trace_of_a_block_has_no_outcome() -> None:
    with cwm.Recorder(max_frames=len(cwm.record(add, 1)) + 1) as traces:
        add(1)
        caught()
    assert [(trace.result is None, trace.truncated) for trace in traces] == [(False, None), (True, "max_frames")]


def test_scope_of_paths_and_package(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from pack.two import two\ndef one():\n    return two()\n")
    (package / "two.py").write_text("def two():\n    return 2\n")
    sys.path.insert(0, str(tmp_path))
    try:
        one = importlib.import_module("pack.one").one
        assert len(cwm.record(one)) == 3
        assert len(cwm.Recorder(scope="package").record(one)) == 6
        assert len(cwm.Recorder(scope=[package / "two.py"]).record(one)) == 3
        assert len(cwm.Recorder(scope=[tmp_path]).record(one)) == 6
    finally:
        sys.path.remove(str(tmp_path))
        for name in ("pack", "pack.one", "pack.two"):
            sys.modules.pop(name)


def test_record_a_file(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text('"""A script."""\nimport sys\nx = len(sys.argv)\nfor i in range(x):\n    y = [i]\n')
    trace = cwm.Recorder().record_file(script, ["argument"])
    assert trace.frames[0].event == "call" and trace.frames[0].locals == {}
    assert trace.frames[-1].event == "return" and trace.frames[-1].arg == "None"
    shown = [frame.locals for frame in trace.frames if frame.locals and "y" in frame.locals]
    assert shown[0] == {"sys": "..", "x": "..", "i": "..", "y": "[0]"}
    assert trace.context.startswith('"""A script."""  # << START_OF_TRACE\n')


@pytest.mark.parametrize("limit", [{"max_frames": 50}, {"max_bytes": 2000}, {"max_seconds": 0.05}])
def test_limits_keep_what_was_recorded(limit: dict) -> None:
    code = "def f():\n    n = 0\n    while True:\n        n += 1\n"
    trace = cwm.Recorder(**limit).record_source(code, "f()")
    assert trace.truncated == next(iter(limit)) and trace.result is None and trace.exception is None
    assert not trace.to_text().endswith("<|end_of_text|>")
    assert len(trace) == 50 if "max_frames" in limit else len(trace) > 10


@pytest.mark.parametrize("seconds", [1e300, float("inf"), 2**64])
def test_a_time_beyond_the_clock_is_no_limit(seconds: float) -> None:
    assert cwm.Recorder(max_seconds=seconds).record(add, 1).truncated is None


def test_the_limit_is_raised_again_at_each_event() -> None:
    code = """
def g():
    return 1
def f():
    n = 0
    for i in range(10):
        try:
            g()
        except BaseException:
            n += 1
    return n
"""
    trace = cwm.Recorder(max_frames=6).record_source(code, "f()")
    assert len(trace) == 6 and trace.truncated == "max_frames"


def interrupted() -> None:
    kept = 1  # noqa: F841
    raise KeyboardInterrupt


def test_keyboard_interrupt_propagates_and_loses_nothing() -> None:
    recorder = cwm.Recorder()
    with pytest.raises(KeyboardInterrupt):
        recorder.record(interrupted)
    assert recorder.last.exception == "KeyboardInterrupt()"
    assert len(recorder.last) == 5
    assert sys.gettrace() is None


def test_system_exit_is_an_outcome() -> None:
    trace = cwm.record_source("import sys\ndef f():\n    sys.exit(3)\n", "f()")
    assert trace.exception == "SystemExit(3)"


def test_the_earlier_trace_function_is_restored() -> None:
    def tracer(frame, event, arg):
        return None

    previous = sys.gettrace()
    sys.settrace(tracer)
    try:
        cwm.record(add, 1)
        assert sys.gettrace() is tracer
        with pytest.raises(KeyboardInterrupt):
            cwm.record(interrupted)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(previous)


def test_a_program_that_sets_its_own_trace_function() -> None:
    code = (
        "import sys\ndef f():\n    own = sys.gettrace()\n    sys.settrace(None)\n    a = 1\n{}    b = 2\n    return b\n"
    )
    left = cwm.record_source(code.format(""), "f()")
    assert left.truncated == "settrace" and left.frames[-1].line == "    sys.settrace(None)\n"
    put_back = cwm.record_source(code.format("    sys.settrace(own)\n    g()\n") + "def g():\n    return 1\n", "f()")
    assert put_back.truncated is None
    assert "    return 1\n" in [frame.line for frame in put_back.frames]
    assert sys.gettrace() is None


def calls_the_hook() -> str:
    hook = sys.gettrace()
    hook(sys._getframe(), "exception", None)
    hook(sys._getframe(), "nonsense", None)
    return "alive"


def test_a_program_that_calls_the_hook_itself() -> None:
    assert cwm.record(calls_the_hook).result == "'alive'"


def nests() -> str:
    try:
        cwm.record(add, 1)
    except RuntimeError as error:
        return str(error)
    return "recorded"


def test_one_recording_a_thread() -> None:
    assert cwm.record(nests).result == "'a recording is already running on this thread'"


def in_another_thread() -> int:
    results = []
    thread = threading.Thread(target=lambda: results.append(len(cwm.record(add, 1))))
    thread.start()
    thread.join()
    return results[0]


def test_threads_record_apart() -> None:
    trace = cwm.record(in_another_thread)
    assert trace.result == "4"
    assert "    total = a + b\n" not in [frame.line for frame in trace.frames]


class Tracked:
    alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self) -> None:
        Tracked.alive.add(self)


def lifetimes() -> list[int]:
    a = Tracked()
    counts = [len(Tracked.alive), sys.getrefcount(a)]
    b = [a, Tracked()]
    counts += [len(Tracked.alive), sys.getrefcount(a)]
    del b
    counts.append(len(Tracked.alive))
    a = None
    counts.append(len(Tracked.alive))
    return counts


def test_objects_live_as_long_as_unrecorded() -> None:
    expected = lifetimes()
    trace = cwm.record(lifetimes)
    assert trace.result == repr(expected)
    gc.collect()
    assert not Tracked.alive


def test_fork_in_a_recorded_program() -> None:
    program = textwrap.dedent("""
        import os, cwm_core as cwm
        code = '''
        import os
        def f():
            child = os.fork()
            if child == 0:
                x = 1
                os._exit(x)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        '''
        import textwrap
        print(cwm.record_source(textwrap.dedent(code), "f()").result)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_misuse_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="scope must be"):
        cwm.Recorder(scope="files")
    for scope in (Path("files"), None, 3, ["files", 3]):
        with pytest.raises(TypeError, match="scope must be"):
            cwm.Recorder(scope=scope)
    with pytest.raises(TypeError, match=r"the file of .* is unknown"):
        cwm.record(len, [])
    with pytest.raises(SyntaxError):
        cwm.record_source("def f(:\n", "f()")
    for call in ("", "add(1); 3", "# add(1)", "add = 1"):
        with pytest.raises(SyntaxError):
            cwm.record_source("", call)
    for seconds in (-1, -1e-9, float("nan")):
        with pytest.raises(ValueError, match="max_seconds must be at least 0, got"):
            cwm.Recorder(max_seconds=seconds)
    with pytest.raises(TypeError, match="max_seconds must be a number or None, got '1'"):
        cwm.Recorder(max_seconds="1")
    with pytest.raises(ValueError, match="max_value_chars must be at most"):
        cwm.Recorder(max_value_chars=2**40).record(add, 1)
    recording = Recording([], [])
    with pytest.raises(RuntimeError, match="not running"):
        recording.stop()
    recording.run(add, (1,))
    assert len(recording.finish(lambda name: [], lambda *entry: "")) == 1
    with pytest.raises(RuntimeError, match="finished"):
        recording.start()


def test_modules_classes_and_functions_are_written_as_repr_writes_them() -> None:
    """The recorder writes these natively; their `repr` is the oracle."""
    values = list(sys.modules.values())
    values += [value for module in (os, gc, textwrap, contextlib, importlib) for value in vars(module).values()]
    values = [value for value in values if type(value).__name__ != "Mock"]
    trace = cwm.record(each, values)
    shown = [state["value"] for state in trace.states() if state and "value" in state]
    assert list(dict.fromkeys(shown)) == list(dict.fromkeys(oracle.render(value) for value in values))


def each(values: list[object]) -> None:
    for value in values:  # noqa: B007
        pass


def test_a_recorded_file_is_the_main_module(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nassert sys.modules['__main__'].__dict__ is globals() and __name__ == '__main__'\n")
    before = sys.modules["__main__"]
    assert cwm.Recorder().record_file(script).exception is None
    assert sys.modules["__main__"] is before
