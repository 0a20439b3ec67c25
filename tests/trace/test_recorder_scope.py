"""Test which code is in scope if a file has many names, and the warning if no code was."""

from __future__ import annotations

import importlib
import os
import sys
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cwm_core as cwm
import pytest
from cwm_core.cli import main

LIBRARY = "def double(n):\n    return n * 2\n"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A package `pack_a` with a module, and a folder of tests beside it."""
    root = tmp_path / "real"
    (root / "pack_a" / "inner").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "pack_a" / "__init__.py").write_text("")
    (root / "pack_a" / "inner" / "__init__.py").write_text("")
    (root / "pack_a" / "inner" / "library.py").write_text(LIBRARY)
    (root / "pack_a" / "caller.py").write_text(
        "from pack_a.inner import library\n\ndef calls(n):\n    return library.double(n)\n"
    )
    before = list(sys.path)
    yield root
    sys.path[:] = before
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pack_a", "library")]:
        del sys.modules[name]


def imported(name: str, folder: str | Path) -> Any:
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    return importlib.import_module(name)


def entered(trace: cwm.Trace) -> list[str]:
    return [frame.line.strip() for frame in trace.frames if frame.event == "call"]


def through_dots(root: Path) -> str:
    return os.path.join(root, "tests", "..")


def through_a_link(root: Path) -> str:
    link = root.parent / "link"
    link.symlink_to(root)
    return str(link)


def relative(root: Path) -> str:
    os.chdir(root / "tests")  # which the test's own change of folder undoes
    return os.pardir


@pytest.mark.parametrize("way", [through_dots, through_a_link, relative])
def test_a_folder_in_scope_has_many_names(project: Path, monkeypatch: Any, way: Callable[[Path], str]) -> None:
    monkeypatch.chdir(project)
    name = way(project)
    module = imported("pack_a.caller", name)
    for scope in ([project], [name], [project / "pack_a"], [os.path.join(name, "pack_a", "inner", "..")]):
        trace = cwm.Recorder(scope=scope).record(module.calls, 2)
        assert entered(trace) == ["def calls(n):", "def double(n):"], scope
    [file] = [cwm.Recorder(scope=[project / "pack_a" / "inner" / "library.py"]).record(module.calls, 2)]
    assert entered(file) == ["def double(n):"]


@pytest.mark.parametrize("way", [through_dots, through_a_link])
def test_files_and_packages_have_many_names(project: Path, monkeypatch: Any, way: Callable[[Path], str]) -> None:
    monkeypatch.chdir(project)
    module = imported("pack_a.caller", way(project))
    # The same file again, by its own name.
    same: dict[str, Any] = {}
    path = project / "pack_a" / "caller.py"
    exec(compile("def other(f):\n    return f(1)\n", str(path), "exec"), same)
    assert entered(cwm.Recorder().record(same["other"], module.calls)) == [
        "from pack_a.inner import library",
        "def calls(n):",
    ]
    assert entered(cwm.Recorder(scope="package").record(module.calls, 2)) == ["def calls(n):", "def double(n):"]


def test_code_beyond_a_link_in_the_scope_is_in_it(project: Path) -> None:
    """A package whose part is a link to elsewhere has that part, by whichever of its names."""
    (project / "pack_a" / "inner").rename(project.parent / "elsewhere")
    (project / "pack_a" / "inner").symlink_to(project.parent / "elsewhere")
    module = imported("pack_a.caller", project)
    both = ["def calls(n):", "def double(n):"]
    assert entered(cwm.Recorder(scope=[project / "pack_a"]).record(module.calls, 2)) == both
    assert entered(cwm.Recorder(scope="package").record(module.calls, 2)) == both
    assert entered(cwm.Recorder(scope=[project.parent / "elsewhere"]).record(module.calls, 2)) == both[1:]


def test_files_beside_the_scope_are_outside_it(project: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(project)
    module = imported("pack_a.caller", through_dots(project))
    (project / "pack_a2").mkdir()
    for scope in ([project / "tests"], [project / "pack_a2"], [project / "pack"]):
        with pytest.warns(RuntimeWarning, match="no frames were recorded"):
            assert not cwm.Recorder(scope=scope).record(module.calls, 2).frames


def test_code_of_no_file_is_in_no_folder(tmp_path: Path, monkeypatch: Any) -> None:
    """`exec` and similar functions name their code `<string>`, which is not a file in the working directory."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("def f():\n    return 1\n", names)
    with pytest.warns(RuntimeWarning, match="<string>"):
        assert len(cwm.Recorder(scope=["."]).record(names["f"])) == 0


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    os.symlink(folder, os.fsencode(tmp_path) + b"/l\xefnk")
    path = os.fsdecode(folder + b"/library.py")
    Path(path).write_text(LIBRARY)
    names: dict[str, Any] = {}
    exec(compile(LIBRARY, os.fsdecode(os.fsencode(tmp_path) + b"/l\xefnk/library.py"), "exec"), names)
    assert entered(cwm.Recorder(scope=[os.fsdecode(folder)]).record(names["double"], 1)) == ["def double(n):"]


def test_modules_in_an_archive_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    with zipfile.ZipFile(tmp_path / "real" / "lib.zip", "w") as archive:
        archive.writestr("zipped_scope.py", LIBRARY)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    module = imported("zipped_scope", tmp_path / "link" / "lib.zip")
    sys.path.pop(0)
    for scope in (tmp_path / "real" / "lib.zip", tmp_path / "real", tmp_path / "link"):
        assert entered(cwm.Recorder(scope=[scope]).record(module.double, 1)) == ["def double(n):"]


@pytest.mark.parametrize(
    "name", ["a/" * 5000 + "b.py", "x" * 5000, "", "\0", "a\0b.py", "\ud800.py", "/" * 100, "../" * 1000, "<", ">"]
)
def test_file_names_that_are_none(tmp_path: Path, name: str) -> None:
    names: dict[str, Any] = {}
    exec("def f(g):\n    return g()\n", names)
    f = names["f"]
    strange = types.FunctionType((lambda: 1).__code__.replace(co_filename=name), {})
    f.__code__ = f.__code__.replace(co_filename=str(tmp_path / "here.py"))
    trace = cwm.Recorder(scope=[tmp_path / "here.py"]).record(f, strange)
    assert [frame.event for frame in trace.frames] == ["call", "line", "return"]
    assert [frame.event for frame in cwm.Recorder().record(strange).frames] == ["call", "line", "return"]


# ---- nothing recorded


def test_an_empty_recording_names_the_files_that_ran(project: Path) -> None:
    module = imported("pack_a.caller", project)
    recorder = cwm.Recorder(scope=[project / "tests"])
    with pytest.warns(RuntimeWarning, match="no frames were recorded") as found:
        recorder.record(module.calls, 1)
    [warning] = found
    assert warning.filename == __file__
    said = str(warning.message)
    assert f"({project / 'tests'})" in said
    assert f"{project / 'pack_a' / 'caller.py'}, {project / 'pack_a' / 'inner' / 'library.py'}" in said


def test_nothing_recorded_in_a_block(project: Path) -> None:
    module = imported("pack_a.caller", project)
    with pytest.warns(RuntimeWarning, match="pack_a/caller.py") as found, cwm.Recorder() as traces:
        module.calls(1)
    assert not traces and found[0].filename == __file__ and "trace.py" not in str(found[0].message)


def test_nothing_recorded_by_the_function(project: Path) -> None:
    async def never() -> Any:
        yield 1

    with pytest.warns(RuntimeWarning, match="No other Python code ran") as found:
        cwm.record(never)
    assert found[0].filename == __file__


def test_no_warning_where_something_else_explains_it(project: Path) -> None:
    module = imported("pack_a.caller", project)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cwm.Recorder(max_frames=0).record(module.calls, 1).truncated == "max_frames"
        with pytest.raises(ZeroDivisionError), cwm.Recorder():
            1 / 0  # noqa: B018
        assert len(cwm.Recorder().record(module.calls, 1)) > 0


def test_a_warning_that_is_an_error_loses_no_trace(project: Path) -> None:
    module = imported("pack_a.caller", project)
    recorder = cwm.Recorder(scope=[project / "tests"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="no frames"):
            recorder.record(module.calls, 1)
        assert recorder.last is not None and recorder.last.result == "2"
        with pytest.raises(RuntimeWarning, match="no frames"), recorder:
            module.calls(1)
        with pytest.raises(RuntimeWarning, match="no frames"), recorder:  # the block before is over
            module.calls(1)


def test_the_command_warns(project: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(project)
    (project / "script.py").write_text("print('done')\n")
    status = main(["record", "script.py", "--scope", "tests", "-o", "out.cwmtrace"])
    said = capsys.readouterr()
    assert status == 0 and said.out == "done\n"
    [line] = [line for line in said.err.splitlines() if "warning" in line]
    assert line.startswith("cwm record: warning: no frames were recorded: no code in scope (")
    assert str(project / "script.py") in line


def test_a_relative_scope_keeps_its_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    double = imported("pack_a.inner.library", project).double
    monkeypatch.chdir(project)
    recorder = cwm.Recorder(scope=["pack_a"])
    monkeypatch.chdir("/")
    assert entered(recorder.record(double, 1)) == ["def double(n):"]
