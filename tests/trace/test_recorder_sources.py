"""The lines of a trace are those of the source that ran: of files that change or vanish, of archives, of loaders."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import os
import sys
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cwm_core as cwm
import pytest

MARK = "  # << START_OF_TRACE"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(tmp_path))
    sys.dont_write_bytecode, bytecode = True, sys.dont_write_bytecode
    yield tmp_path
    sys.dont_write_bytecode = bytecode
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def imported(name: str) -> Any:
    importlib.invalidate_caches()
    return importlib.import_module(name)


def lines(trace: cwm.Trace) -> list[str]:
    return [frame.line for frame in trace.frames]


def test_a_reloaded_module_has_its_new_lines(folder: Path) -> None:
    (folder / "edited.py").write_text("def f(n):\n    return n + 1\n")
    module = imported("edited")
    assert lines(cwm.record(module.f, 1))[-1] == "    return n + 1\n"
    (folder / "edited.py").write_text('"""Now with a docstring."""\n\ndef f(n):\n    return n + 22\n')
    importlib.reload(module)
    with cwm.Recorder(scope=[folder]) as traces:
        module.f(1)
    for trace in (cwm.record(module.f, 1), *traces):
        assert lines(trace) == ["def f(n):\n", "    return n + 22\n", "    return n + 22\n"]
        assert trace.context == f'"""Now with a docstring."""\n\ndef f(n):{MARK}\n    return n + 22\n'
    called = cwm.Recorder().record_call(module, "f(1)")
    assert called.frames[3].line == "    return n + 22\n" and "return n + 1\n" not in called.context


def test_an_edit_that_keeps_size_and_time(folder: Path) -> None:
    """An edit that `linecache` cannot distinguish from the version that it knows."""
    path = folder / "touched.py"
    path.write_text("def f(n):\n    return n + 1\n")
    times = os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns
    module = imported("touched")
    linecache.getlines(str(path))
    path.write_text("def f(n):\n    return n + 2\n")
    os.utime(path, ns=times)
    importlib.reload(module)
    trace = cwm.record(module.f, 1)
    assert trace.result == "3" and lines(trace)[-1] == "    return n + 2\n"


def test_another_file_of_a_wide_scope(folder: Path) -> None:
    (folder / "helped.py").write_text("import helping\ndef f(n):\n    return helping.g(n)\n")
    (folder / "helping.py").write_text("def g(n):\n    return n\n")
    module = imported("helped")
    linecache.getlines(str(folder / "helping.py"))
    (folder / "helping.py").write_text("\n\ndef g(n):\n    return -n\n")
    importlib.reload(module.helping)
    trace = cwm.Recorder(scope=[folder]).record(module.f, 1)
    assert trace.result == "-1" and "    return -n\n" in lines(trace)


@pytest.mark.parametrize(
    "what", ["os.remove(__file__)", "open(__file__, 'w').write('# none')", "os.truncate(__file__, 0)"]
)
def test_a_program_that_changes_its_own_source(folder: Path, what: str) -> None:
    source = f"import os\n\ndef f():\n    {what}\n    return 1\n"
    (folder / "gone.py").write_text(source)
    trace = cwm.record(imported("gone").f)
    assert lines(trace)[-1] == "    return 1\n"
    assert trace.context == source.replace("def f():", "def f():" + MARK)
    script = folder / "script.py"
    script.write_text(f"import os\n{what}\nx = 1\n")
    trace = cwm.Recorder().record_file(script)
    assert lines(trace)[-1] == "x = 1\n" and trace.context.startswith("import os" + MARK)


def test_a_source_that_was_gone_before(folder: Path) -> None:
    (folder / "absent.py").write_text("def f(n):\n    return n\n")
    module = imported("absent")
    (folder / "absent.py").unlink()
    trace = cwm.record(module.f, 1)
    assert lines(trace) == ["", "", ""] and trace.context == ""


@pytest.mark.parametrize(("coding", "text"), [("utf-8", "é"), ("latin-1", "é"), ("utf-8-sig", "é"), ("cp1251", "д")])
def test_encodings_and_line_ends(folder: Path, coding: str, text: str) -> None:
    head = "# an encoding follows\n" if coding == "utf-8-sig" else f"# coding: {coding}\n"
    source = head + f"def f():\r\n    x = '{text}'\r    return x"
    (folder / "encoded.py").write_bytes(source.encode(coding))
    trace = cwm.record(imported("encoded").f)
    assert trace.result == repr(text)
    assert lines(trace) == ["def f():\n", f"    x = '{text}'\n", "    return x\n", "    return x\n"]


def test_a_source_that_is_not_text(folder: Path) -> None:
    path = folder / "binary.py"
    path.write_bytes(b"\xff\xfe\x00")
    names: dict[str, Any] = {}
    exec(compile("def f():\n    return 1\n", str(path), "exec"), names)
    assert lines(cwm.record(names["f"])) == ["", "", ""]


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "FIFO", "FOLDER"])
def test_a_file_that_is_not_source_code(folder: Path, path: str) -> None:
    """File names that a program gives its code are untrusted: endless files are not read."""
    os.mkfifo(folder / "FIFO")
    (folder / "FOLDER").mkdir()
    names: dict[str, Any] = {}
    exec(compile("def f():\n    return 1\n", path if path.startswith("/") else str(folder / path), "exec"), names)
    trace = cwm.record(names["f"])
    assert lines(trace) == ["", "", ""] and trace.result == "1"


# ---- sources that are in no file


def zipped(folder: Path, **modules: str) -> Path:
    path = folder / "lib.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, source in modules.items():
            archive.writestr(name.replace("__", "/") + ".py", source)
    sys.path.insert(0, str(path))
    return path


def test_modules_in_archives(folder: Path) -> None:
    path = zipped(
        folder,
        zipped_plain="import zipped_other\n\ndef f(n):\n    return zipped_other.g(n)\n",
        zipped_other="def g(n):\n    return n\n",
    )
    module = imported("zipped_plain")
    trace = cwm.Recorder(scope=[path]).record(module.f, 1)
    assert lines(trace)[:4] == ["def f(n):\n", "    return zipped_other.g(n)\n", "def g(n):\n", "    return n\n"]
    assert trace.context == f"import zipped_other\n\ndef f(n):{MARK}\n    return zipped_other.g(n)\n"
    assert "    return zipped_other.g(n)\n" in lines(cwm.Recorder().record_call(module, "f(1)"))


def test_an_archive_that_is_gone_before_the_end(folder: Path) -> None:
    path = zipped(folder, zipped_gone="import os, sys\n\ndef f(path):\n    os.remove(path)\n    return 1\n")
    trace = cwm.record(imported("zipped_gone").f, path)
    assert lines(trace)[-1] == "    return 1\n"


def test_a_module_that_forgets_itself(folder: Path) -> None:
    zipped(folder, zipped_lost="import sys\n\ndef f():\n    del sys.modules[__name__]\n    return 1\n")
    assert lines(cwm.record(imported("zipped_lost").f))[-1] == "    return 1\n"


def test_an_archive_that_is_replaced(folder: Path) -> None:
    path = zipped(folder, zipped_new="def f(n):\n    raise ValueError(n)\n")
    module = imported("zipped_new")
    try:
        module.f(1)
    except ValueError as error:
        traceback.format_exception(error)  # puts the lines into linecache, for good
    path.unlink()
    del sys.modules["zipped_new"]
    importlib.invalidate_caches()
    sys.path_importer_cache.clear()
    zipped(folder, zipped_new="\n\ndef f(n):\n    return n\n")
    trace = cwm.record(imported("zipped_new").f, 1)
    assert trace.result == "1" and lines(trace) == ["def f(n):\n", "    return n\n", "    return n\n"]


class MemoryLoader(importlib.abc.InspectLoader):
    def __init__(self, source: str, fails: bool = False) -> None:
        self.source, self.fails = source, fails

    def get_source(self, fullname: str) -> str:
        if self.fails and sys._getframe(1).f_code.co_name != "get_code":
            raise RuntimeError("not now")
        return self.source

    def get_code(self, fullname: str) -> Any:
        return compile(self.source, f"memory://{fullname}", "exec", dont_inherit=True)


@pytest.mark.parametrize("fails", [False, True])
def test_modules_of_other_loaders(fails: bool) -> None:
    loader = MemoryLoader("def f(n):\n    return n\n", fails)
    spec = importlib.machinery.ModuleSpec("in_memory", loader, origin="memory://in_memory")
    module = importlib.util.module_from_spec(spec)
    sys.modules["in_memory"] = module
    try:
        loader.exec_module(module)
        trace = cwm.record(module.f, 1)
    finally:
        del sys.modules["in_memory"]
    expected = ["", "", ""] if fails else ["def f(n):\n", "    return n\n", "    return n\n"]
    assert lines(trace) == expected and trace.result == "1"


def test_lines_that_programs_put_into_linecache(folder: Path) -> None:
    """As notebooks and generators of code do, also under the name of a file."""
    source = "def f(n):\n    return n\n"
    (folder / "template.py").write_text("{{ a template }}\n")
    for name in ("<cell 1>", str(folder / "cell_2.py"), str(folder / "template.py")):
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        names: dict[str, Any] = {}
        exec(compile(source, name, "exec"), names)
        assert lines(cwm.record(names["f"], 1)) == ["def f(n):\n", "    return n\n", "    return n\n"], name
        del linecache.cache[name]
