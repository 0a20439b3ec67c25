"""Programs that do their worst while they are recorded: each has a defined outcome, and the process lives."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import oracle
import pytest


def in_a_child(program: str, timeout: float = 60) -> Any:
    """Return the output of the program, parsed as JSON. A process that dies fails the test."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def recorded(code: str, call: str = "f()", timeout: float = 60) -> dict[str, Any]:
    """The trace of a program, recorded in a child process."""
    program = f"""
import json, sys
import cwm_core as cwm
trace = cwm.record_source({code!r}, {call!r})
assert sys.gettrace() is None
assert cwm.Trace.from_bytes(trace.to_bytes()) == trace
frames = [(f.event, f.locals, f.line, f.arg) for f in trace.frames]
print(json.dumps(dict(result=trace.result, exception=trace.exception, truncated=trace.truncated, frames=frames)))
"""
    return in_a_child(program, timeout)


def assert_as_oracle(code: str, call: str = "f()") -> None:
    expected = oracle.record_source(code, call)
    assert [oracle.OracleFrame(*frame) for frame in recorded(code, call)["frames"]] == expected


# The body of a `__repr__` and the text that it shows.
REPRS = {
    "raises": ("raise ValueError(1)", "<T object>"),
    "gives no string": ("return 5", "<T object>"),
    "gives a subclass of str": (
        "other = {'__str__': lambda s: 'x', '__repr__': lambda s: 'y', '__len__': lambda s: 0}\n"
        "return type('S', (str,), other)('text')",
        "text",
    ),
    "lone surrogate": ("return '\\ud800'", "\ud800"),
    "addresses": ("return 'a at 0x1 at 0x2f, at 0x at 0xg'", "a, at 0x at 0xg"),
    "200 MB": ("return 'x' * 200_000_000", "x" * 1000 + "..."),
    "recursion without end": ("return repr(self)", "<T object>"),
    "records": ("import cwm_core\ncwm_core.record(f)", "<T object>"),
    "collects garbage": ("gc.collect()\nreturn 'T'", "T"),
    "looks at the locals": ("return str('v' in sys._getframe(1).f_locals)", "True"),
    "clears the frame": ("sys._getframe(1).clear()", "<T object>"),
    "runs a generator": ("return str([i for i in (j for j in range(2))])", "[0, 1]"),
    "runs a loop": ("import asyncio\nasync def one():\n    return '1'\nreturn asyncio.run(one())", "1"),
    "runs code in scope": ("exec(compile('z = 1\\nq = 2\\n', '<cwm>', 'exec'), {})\nreturn 'T'", "T"),
    "forks": (
        "import os\nchild = os.fork()\nif not child:\n    os._exit(0)\nos.waitpid(child, 0)\nreturn 'T'",
        "T",
    ),
    "switches threads": (
        "t = threading.Thread(target=lambda: list(range(9)))\nt.start()\nt.join()\ntime.sleep(0.001)\nreturn 'T'",
        "T",
    ),
    "is interrupted by a signal handler": (
        "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *a: None)\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\nreturn 'T'",
        "T",
    ),
    "sets a profile function": ("sys.setprofile(lambda *a: None)\nsys.setprofile(None)\nreturn 'T'", "T"),
    "warns, warnings being errors": (
        "import warnings\nwith warnings.catch_warnings():\n    warnings.simplefilter('error')\n    warnings.warn('x')",
        "<T object>",
    ),
}


@pytest.mark.parametrize("name", REPRS)
def test_repr(name: str) -> None:
    body, shown = REPRS[name]
    trace = recorded(
        "import gc, sys, threading, time\nclass T:\n    def __repr__(self):\n"
        + textwrap.indent(body, " " * 8)
        + "\ndef f():\n    v = T()\n    w = 1\n    return w\n"
    )
    assert trace["result"] == "1" and trace["exception"] is trace["truncated"] is None
    assert [f[1]["v"] for f in trace["frames"] if f[1] and "v" in f[1]] == [shown, ".."]
    assert len(trace["frames"]) == 8


@pytest.mark.parametrize("own", ["None", "lambda *event: None"])
def test_repr_that_sets_a_trace_function(own: str) -> None:
    code = f"import sys\nclass T:\n    def __repr__(self):\n        sys.settrace({own})\n        return 'T'\n"
    trace = recorded(code + "def f():\n    v = T()\n    w = 1\n    return w\n")
    assert trace["truncated"] == "settrace" and len(trace["frames"]) == 5


def test_a_frame_in_the_place_of_one_whose_end_was_not_seen() -> None:
    code = """
import sys
def f():
    for i in range(3):
        left(sys.gettrace())
        other(1, 2, i)
    return i
def left(own):
    global hook
    hook = own
    n = 1
    m = 2
    sys.settrace(None)
def other(a, b, c):
    d = e = a
    sys.settrace(hook)
    sys._getframe().f_trace = hook
    g = d
    return g
"""
    trace = recorded(code)
    assert (trace["result"], trace["exception"], trace["truncated"]) == ("2", None, None)
    shown = [frame[1] for frame in trace["frames"] if frame[2] == "    g = d\n"]
    assert shown == [dict(zip("abcde", f"12{i}11", strict=True)) for i in range(3)]


def test_repr_that_exits_ends_the_program() -> None:
    code = "import sys\nclass T:\n    def __repr__(self):\n        sys.exit(3)\n"
    trace = recorded(code + "def f():\n    v = T()\n    w = 1\n    return w\n")
    assert trace["exception"] == "SystemExit(3)"


def test_repr_that_raises_keyboard_interrupt_reaches_the_caller() -> None:
    shown = in_a_child("""
        import json, sys
        import cwm_core as cwm
        code = '''
        class T:
            def __repr__(self):
                raise KeyboardInterrupt
        def f():
            v = T()
            w = 1
            return w
        '''
        import textwrap
        recorder = cwm.Recorder()
        try:
            recorder.record_source(textwrap.dedent(code), "f()")
        except KeyboardInterrupt:
            print(json.dumps([recorder.last.exception, len(recorder.last), sys.gettrace()]))
    """)
    assert shown == ["KeyboardInterrupt()", 8, None]


def test_repr_that_changes_what_is_shown() -> None:
    """Each element shown is alive while it is shown, whatever its neighbours do."""
    code = """
class Changes:
    def __init__(self, change):
        self.change = change
    def __repr__(self):
        self.change()
        return 'C'
def f():
    a = []
    a += [[1], Changes(a.clear), ['x' * 50], Changes(lambda: a.extend(range(9)))]
    d = {}
    d.update({1: Changes(d.clear), 'x' * 50: ['y' * 50]})
    s = set()
    s |= {Changes(s.clear), 'z' * 50}
    deep = [[Changes(lambda: deep.clear())], 'w' * 50]
    return len(deep)
"""
    assert recorded(code)["result"] == "0"


def test_repr_that_unbinds_variables_of_the_frame() -> None:
    code = """
def f():
    b = [1]
    a = 2
    class T:
        def __repr__(self):
            nonlocal a, b
            del a, b
            return 'T'
    v = T()
    z = 1
    return z
"""
    trace = recorded(code)
    assert trace["result"] == "1"
    seen = [f[1]["v"] for f in trace["frames"] if f[1] and "v" in f[1]]
    assert seen[0] == "T" and len(seen) == 2


@pytest.mark.parametrize("how", ["R.__exit__(None, None, None)", "R._block = None"])
def test_repr_that_ends_the_recording(how: str) -> None:
    assert in_a_child(f"""
import contextlib, gc, sys
import cwm_core as cwm
R = cwm.Recorder()
class T:
    def __repr__(self):
        with contextlib.suppress(RuntimeError):
            {how}
        gc.collect()
        return "T"
def f():
    v = [1, T(), T()]
    b = 2
    return b
traces = R.__enter__()
f()
with contextlib.suppress(RuntimeError):
    R.__exit__(None, None, None)
print(len(traces) <= 1 and 1)
""")


def test_repr_that_calls_the_hook() -> None:
    code = """
import sys
class U:
    def __repr__(self):
        return 'u' * 1000
def other():
    a = [U()]
    return sys._getframe()
class T:
    def __repr__(self):
        for event in 'call', 'line', 'return':
            sys.gettrace()(other(), event, U())
        return 'T'
def f():
    v = [1, T(), 2]
    w = 1
    return w
"""
    trace = recorded(code)
    assert trace["result"] == "1"
    assert [f[1]["v"] for f in trace["frames"] if f[1] and "v" in f[1]] == ["[1, T, 2]", ".."]


def test_addresses_are_removed_in_linear_time() -> None:
    body = "class T:\n    def __repr__(self):\n        return ' at 0x1' * 2_000_000\n"
    assert recorded(body + "def f():\n    v = T()\n    return 1\n", timeout=10)["result"] == "1"


NAMESPACES = {
    "exec in a UserDict": """
import collections
def g(p, q):
    return p
def f():
    g(1, 2)
    d = collections.UserDict()
    exec(compile('a = 1\\nb = a\\n', '<cwm>', 'exec'), {}, d)
    return d['b']
""",
    "class body in a UserDict": """
import collections
class Meta(type):
    @classmethod
    def __prepare__(meta, name, bases):
        return collections.UserDict()
    def __new__(meta, name, bases, body):
        return type.__new__(meta, name, bases, dict(body))
def f():
    class C(metaclass=Meta):
        a = 1
        b = 2
    return C.b
""",
    "globals that are no names": "def f():\n    exec(compile('a = 1\\n', '<cwm>', 'exec'), {5: 2, None: 4, '': 5})\n",
    "class body with a comprehension over lines": """
def f():
    class C:
        a = 2
        z = 3
        y = 4
        b = [i
             for i in range(2)]
        c = 3
    return C.b
""",
    "class body with a comprehension over a cell": """
def f():
    class C:
        def method(self):
            return __class__
        items = [(lambda: i) for i in range(2)]
        y = [x() for x in items]
    return C.y
""",
    "class bodies with comprehensions in a function": """
def f(n):
    class C:
        w = 1
        b = [(i, n) for i in range(2)]
        i = 5
        d = {i: w2 for i, w2 in [(1, 2)]}
        e = [[n, k] for k in range(2)]
        __private = [__v for __v in range(2)]
        g = {k for k in [C_ for C_ in range(2)]}
    return C.b
""",
    "free variable named as a comprehension's": """
def f():
    c = [7]
    def q():
        u = c
        [[c for c in range(2)] for _ in range(2)]
        return u
    return q()
""",
}


@pytest.mark.parametrize("name", NAMESPACES)
def test_namespaces(name: str) -> None:
    assert_as_oracle(NAMESPACES[name])


STRANGE_CODE = {
    "file name that is no text": "exec(compile('a = 1\\n', '\\udcff.py', 'exec'), {})",
    "function name that is no text": "exec((lambda: 0).__code__.replace(co_name='\\ud800'))",
    "variable name that is no text": "exec((lambda: 0).__code__.replace(co_varnames=('\\ud800',), co_nlocals=1))",
    "negative line": """
    import ast
    tree = ast.parse('def k():\\n    return 1\\nk()\\n')
    for node in ast.walk(tree):
        node.lineno = node.end_lineno = -5
    exec(compile(tree, '<cwm>', 'exec'), {})""",
    "last line number": "exec((lambda: 0).__code__.replace(co_firstlineno=2**31 - 1))",
    "far line": "exec(compile('\\n' * 1_000_000 + 'a = 1\\n', '<cwm>', 'exec'), {})",
}


@pytest.mark.parametrize("name", STRANGE_CODE)
def test_strange_code(name: str) -> None:
    code = "class T:\n    def __repr__(self):\n        raise ValueError\ndef f():\n    " + STRANGE_CODE[name]
    trace = recorded(code + "\n    w = 1\n    return w\n")
    assert (trace["result"], trace["exception"]) == ("1", None)


def test_record_source_in_a_recorded_source() -> None:
    code = """
import threading
import cwm_core
def f():
    thread = threading.Thread(target=cwm_core.record_source, args=('', '1'))
    thread.start()
    thread.join()
    return 2
"""
    trace = recorded(code)
    assert trace["frames"][-2][2] == "    return 2\n"


def test_block_ended_by_another_thread() -> None:
    shown = in_a_child("""
        import json, sys, threading
        import cwm_core as cwm
        errors = []
        def leave():
            try:
                recorder.__exit__(None, None, None)
            except BaseException as error:
                errors.append(type(error).__name__)
        def f():
            return 1
        recorder = cwm.Recorder()
        traces = recorder.__enter__()
        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        f()
        recorder.__exit__(None, None, None)
        print(json.dumps([errors, len(traces), sys.gettrace()]))
    """)
    assert shown == [["RuntimeError"], 1, None]


def test_exceptions_of_signal_handlers_during_a_repr_reach_the_program() -> None:
    code = """
import signal, time
class Slow:
    def __repr__(self):
        time.sleep(0.01)
        return 'slow'
def ring(number, frame):
    raise TimeoutError
def f():
    slow = Slow()
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        for i in range(300):
            pass
    except TimeoutError:
        return 'rang'
"""
    assert recorded(code, timeout=20)["result"] == "'rang'"


WORLD = {
    "exit in atexit": ("import atexit\natexit.register(sys.exit, 0)\nreturn 1", "1"),
    "child that exits": (
        "import os\nchild = os.fork()\nif not child:\n    x = [1]\n    os._exit(7)\n"
        "return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])",
        "7",
    ),
    "child that goes on": (
        "import os\nr, w = os.pipe()\nif not os.fork():\n"
        "    os.write(w, str([sum(range(i)) for i in range(4)]).encode())\n    os._exit(0)\n"
        "os.wait()\nreturn os.read(r, 99)",
        "b'[0, 0, 1, 3]'",
    ),
    "subprocess": (
        "import subprocess\nreturn subprocess.run([sys.executable, '-c', 'print(5)'], capture_output=True).stdout",
        r"b'5\n'",
    ),
    "alarm": (
        "import signal, time\nseen = []\nsignal.signal(signal.SIGALRM, lambda n, frame: seen.append(n))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.01)\nwhile not seen:\n    time.sleep(0.001)\nreturn len(seen)",
        "1",
    ),
    "threads": (
        "import threading\nseen = []\nthreads = [threading.Thread(target=seen.append, args=(i,)) for i in range(4)]\n"
        "for t in threads: t.start()\nfor t in threads: t.join()\nreturn sorted(seen)",
        "[0, 1, 2, 3]",
    ),
    "thread pool": (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as pool:\n"
        "    return list(pool.map(lambda i: i * i, range(4)))",
        "[0, 1, 4, 9]",
    ),
    "generator run by another thread": (
        "import threading\ndef g():\n    yield 1\n    yield 2\nit = g()\nseen = [next(it)]\n"
        "t = threading.Thread(target=lambda: seen.append(next(it)))\nt.start()\nt.join()\nreturn seen + list(it)",
        "[1, 2]",
    ),
    "recursion limit": (
        "def deep(n):\n    return deep(n + 1)\ntry:\n    deep(0)\nexcept RecursionError:\n    return 'deep enough'",
        "'deep enough'",
    ),
    "trace function of frames": (
        "frame = sys._getframe()\nframe.f_trace = lambda *event: None\nframe.f_trace_opcodes = True\na = 1\nreturn a",
        "1",
    ),
}


@pytest.mark.parametrize("name", WORLD)
def test_the_outside_world(name: str) -> None:
    body, result = WORLD[name]
    trace = recorded("import sys\ndef f():\n" + textwrap.indent(body, "    ") + "\n")
    assert (trace["result"], trace["exception"], trace["truncated"]) == (result, None, None)


@pytest.mark.parametrize("options", ["", "object_state=True"])
def test_finalizers_that_change_what_is_shown(options: str) -> None:
    """With a collection at every allocation, cycles die, and clear the container shown, whenever that can happen."""
    code = """
import gc
class Plain:
    def __init__(self):
        self.x = {1, 2}
class Shown(Plain):
    def __repr__(self):
        return f'{self.x}'
class Cycle:
    def __init__(self, target):
        self.me, self.target = self, target
    def __del__(self):
        self.target.clear()
def f():
    gc.set_threshold(1, 1, 1)
    for i in range(60):
        v = [[{j, 'a'}, (Plain(), [{2.5: {j}}]), Shown(), frozenset({j})] for j in range(5)]
        d = {'k': v, 'd': {1: v}}
        Cycle(v), Cycle(v[0]), Cycle(d)
        w = [i, v, d]
    gc.set_threshold(700, 10, 10)
    return i
"""
    shown = in_a_child(f"""
import json
import cwm_core as cwm
trace = cwm.Recorder({options}).record_source({code!r}, 'f()')
assert cwm.Trace.from_bytes(trace.to_bytes()) == trace
print(json.dumps([trace.result, len(trace) > 300]))
""")
    assert shown == ["59", True]
