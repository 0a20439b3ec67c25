"""A recorded program runs as Python runs it: its own names, `__main__`, `sys.argv`, and `sys.path`."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import cwm_core as cwm
import oracle
import pytest
from cwm_core.trace.entry import load_program


def written(trace: cwm.Trace) -> list[oracle.OracleFrame]:
    return [oracle.OracleFrame(f.event, f.locals, f.line, f.arg) for f in trace.frames]


# ---- the entry takes no name of the program

OWN_NAMES = {
    "a main": ("def main():\n    return 42\n", "main()", "42"),
    "a main that is a class": ("class main:\n    value = 7\n", "main.value", "7"),
    "a main with arguments": ("def main(n):\n    return n and main(n - 1) or n\n", "main(3)", "1"),
    "code that calls its main": ("def main():\n    return 1\ndef f():\n    return main() + 1\n", "f()", "2"),
    "no main": ("names = sorted(globals())\n", "'main' in names or 'main' in globals()", "False"),
    "a main that is deleted": ("def main():\n    return 1\nvalue = main()\ndel main\n", "value", "1"),
}


@pytest.mark.parametrize("name", OWN_NAMES)
def test_the_program_keeps_its_names(name: str) -> None:
    code, call, result = OWN_NAMES[name]
    trace = cwm.record_source(code, call)
    assert trace.result == result
    assert written(trace) == oracle.record_source(code, call)
    assert trace.context == f"\n{code}\ndef main():  # << START_OF_TRACE\n    return {call}\n"


# ---- __main__ is in sys.modules

MAIN = {
    "a dataclass with ClassVar": (
        """
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import ClassVar
        @dataclass
        class Point:
            x: int
            count: ClassVar[int] = 0
        """,
        "Point(1)",
        "Point(x=1)",
    ),
    "pickle": (
        """
        import pickle
        class Point:
            def __eq__(self, other):
                return type(self) is type(other)
        """,
        "pickle.loads(pickle.dumps(Point())) == Point()",
        "True",
    ),
    "get_type_hints": (
        """
        from __future__ import annotations
        import typing
        class Node:
            next: Node
        """,
        "typing.get_type_hints(Node)['next'] is Node",
        "True",
    ),
    "import __main__": ("def f():\n    import __main__\n    return __main__.f is f\n", "f()", "True"),
    "multiprocessing": (
        """
        import multiprocessing
        def double(n):
            return 2 * n
        def f():
            with multiprocessing.get_context("fork").Pool(1) as pool:
                return pool.map(double, [1, 2])
        """,
        "f()",
        "[2, 4]",
    ),
}


@pytest.mark.parametrize("name", MAIN)
def test_the_module_is_main_in_sys_modules(name: str, tmp_path: Path) -> None:
    code, call, result = MAIN[name]
    before = sys.modules["__main__"]
    trace = cwm.record_source(textwrap.dedent(code), call)
    assert trace.result == result
    assert written(trace) == oracle.record_source(textwrap.dedent(code), call)
    assert sys.modules["__main__"] is before
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(code))
    for options in ([], ["--as-module"]):
        if options and name == "import __main__":
            continue  # then `__main__` is another module
        done = subprocess.run(
            [sys.executable, "-m", "cwm_core", "record", file, "--call", call, "-o", tmp_path / "t.cwmtrace", *options],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert cwm.Trace.load(tmp_path / "t.cwmtrace").result == result


def test_main_is_restored_after_a_body_that_raises_or_removes_it() -> None:
    before = sys.modules["__main__"]
    with pytest.raises(ZeroDivisionError):
        cwm.record_source("1 / 0\n", "1")
    assert sys.modules["__main__"] is before
    assert cwm.record_source("import sys\ndel sys.modules['__main__']\n", "1").result == "1"
    assert sys.modules["__main__"] is before


def test_main_is_restored_when_recordings_of_threads_overlap() -> None:
    before = sys.modules["__main__"]
    begun, may_end = threading.Event(), threading.Event()
    sys.modules["waits"] = begun, may_end  # type: ignore[assignment]
    code = "import sys\nbegun, may_end = sys.modules['waits']\nbegun.set()\nmay_end.wait(10)\n"
    thread = threading.Thread(target=cwm.record_source, args=(code, "1"))
    try:
        thread.start()
        assert begun.wait(10)
        inner = "import sys\nevent = sys.modules['waits'][1]\n"
        # The first one ends within the second one.
        cwm.record_source(inner + "event.set()\nimport time\ntime.sleep(0.2)\n", "1")
    finally:
        del sys.modules["waits"]
    thread.join(10)
    assert sys.modules["__main__"] is before


def test_a_name_keeps_the_main_part_from_running() -> None:
    code = "ran = False\nif __name__ == '__main__':\n    ran = True\ndef f():\n    return ran, __name__\n"
    assert cwm.record_source(code, "f()").result == "(True, '__main__')"
    assert cwm.Recorder().record_source(code, "f()", name="program").result == "(False, 'program')"
    assert "program" not in sys.modules


def test_a_call_in_a_file_has_its_name_and_numbers(tmp_path: Path) -> None:
    code = "def f(n):\n    n += 1\n    return n, __file__\n"
    file = tmp_path / "program.py"
    trace = cwm.Recorder().record_source(code, "f(1)", file=file)
    assert trace.result == repr((2, str(file)))
    assert [frame.lineno for frame in trace.frames] == [5, 6, 1, 2, 3, 3, 6]
    assert written(trace)[:2] == oracle.record_source(code, "f(1)")[:2]
    assert trace.context == cwm.record_source(code, "f(1)").context


# ---- record_file is `python PATH`

STATE = """
import json, sys
names = [name for name in globals() if name not in ("json", "sys", "names", "state")]
cached = globals().get("__cached__")
state = [sys.argv, sys.path, __file__, __name__, __package__, type(__loader__).__name__, cached, names]
state += [str(type(__builtins__)), sys._getframe().f_code.co_filename, sys.modules["__main__"].__dict__ is globals()]
print(json.dumps(state))
"""


def states(arguments: list[str], cwd: Path, *flags: str) -> tuple[list, list]:
    """Return the output of a program under Python and under `cwm record`."""
    plain = [sys.executable, *flags, *arguments]
    recorded = [
        sys.executable,
        *flags,
        "-m",
        "cwm_core",
        "record",
        arguments[0],
        "-o",
        "/dev/null",
        "--",
        *arguments[1:],
    ]
    outputs = []
    for command in (plain, recorded):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)
        assert done.returncode == 0, done.stderr
        outputs.append(json.loads(done.stdout))
    return outputs[0], outputs[1]


@pytest.mark.parametrize("flags", [(), ("-P",)])
@pytest.mark.parametrize("path", ["script.py", "./script.py", "../there/script.py", "link.py", "folder", "zipped.pyz"])
def test_a_program_sees_what_it_sees_under_python(path: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "folder").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for file in (there / "script.py", there / "folder" / "__main__.py", tmp_path / "elsewhere" / "real.py"):
        file.write_text(STATE)
    (there / "link.py").symlink_to("../elsewhere/real.py")
    with zipfile.ZipFile(there / "zipped.pyz", "w") as archive:
        archive.writestr("__main__.py", STATE)
    plain, recorded = states([path, "-x", "y"], there, *flags)
    assert recorded == plain


def test_arguments_and_folder_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("import sys\nargv, first = sys.argv, sys.path[0]\n")
    before = sys.argv, sys.path, sys.modules["__main__"]
    trace = cwm.Recorder().record_file("script.py", ["-v"])
    assert trace.frames[-1].event == "return"
    (tmp_path / "uses.py").write_text("import sys\ndef f(argv, first):\n    pass\nf(sys.argv, sys.path[0])\n")
    frame = next(
        f for f in cwm.Recorder().record_file(Path("uses.py"), ["-v"]).frames if f.locals and "argv" in f.locals
    )
    assert frame.locals == {"argv": "['uses.py', '-v']", "first": repr(str(tmp_path.resolve()))}
    assert (sys.argv, sys.path, sys.modules["__main__"]) == before


def test_a_folder_without_main_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder or zip file with a __main__\.py"):
        load_program(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_program(tmp_path / "absent.py")


# ---- the scope of a class is the file of its class statement


@dataclass
class Data:
    value: int

    def __post_init__(self) -> None:
        self.value += 1


@dataclass
class Bare:
    value: int


class Plain(Bare):
    pass


Item = TypeVar("Item")


class Box(Generic[Item]):
    def __new__(cls, value: int) -> Box[Item]:
        return super().__new__(cls)


class Pair(namedtuple("Pair", "a b")):
    pass


@pytest.mark.parametrize("made", [Data, Box, Box[int]])
def test_a_class_is_recorded_in_its_own_file(made: type) -> None:
    trace = cwm.record(made, 1)
    expected = oracle.trace(oracle.Tracer(__file__.__eq__), lambda: made(1))
    expected = [frame for frame in expected if "lambda" not in frame.line]
    assert written(trace) == expected
    assert trace.frames[0].line.strip().startswith("def __")


def test_an_inherited_init_is_not_the_scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "base_of_it.py").write_text("class Base:\n    def __init__(self):\n        self.hook()\n")
    derived = "from base_of_it import Base\nclass Derived(Base):\n    def hook(self):\n        self.x = 1\n"
    (tmp_path / "derived_from_it.py").write_text(derived)
    import derived_from_it  # type: ignore[import-not-found]

    assert [frame.line for frame in cwm.record(derived_from_it.Derived).frames] == [
        "    def hook(self):\n", "        self.x = 1\n", "        self.x = 1\n",
    ]  # fmt: skip


def test_a_class_without_functions_has_the_scope_of_its_module() -> None:
    for made in (Bare, Plain):
        assert cwm.record(made, 1).result == f"{made.__name__}(value=1)"
    assert cwm.record(Pair, 1, 2).result == "Pair(a=1, b=2)"
    with pytest.raises(TypeError, match="scope="):
        cwm.record(int, "1")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("runnable", "runnable.__main__"), ("runnable.tool", "runnable.tool"), ("single", "single")],
)
def test_a_module_runs_as_under_python_m(
    name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "runnable"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "core.py").write_text("def go():\n    return 3\n")
    shows = (
        "import sys\nprint(__name__, __package__, __spec__.name, __file__, sys.argv, sys.path[0], go(), flush=True)\n"
    )
    for file in (package / "__main__.py", package / "tool.py"):
        file.write_text("from .core import go\n" + shows)
    (tmp_path / "single.py").write_text("def go():\n    return 3\n" + shows)
    monkeypatch.chdir(tmp_path)
    argv = ["--one", "two"]
    plain = subprocess.run(
        [sys.executable, "-m", name, *argv], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    before = list(sys.path)
    trace = cwm.Recorder(scope="package").record_module(name, argv)
    assert capsys.readouterr().out == plain
    assert len(trace)
    assert plain.startswith(f"__main__ {expected.rpartition('.')[0]} {expected} ")
    assert sys.path == before
    for loaded in [module for module in sys.modules if module.partition(".")[0] == "runnable"]:
        del sys.modules[loaded]


@pytest.mark.parametrize("name", ["absent", "absent.child", "folder", "json.absent"])
def test_a_module_that_cannot_run_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{name}: expected a module, or a package with a __main__ module"):
        cwm.Recorder().record_module(name)
