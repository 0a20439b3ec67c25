"""`pytest --cwm-record`: which modules it records."""

import cwm_core as cwm
import pytest
from suites import found, recorded, small


def test_modules_with_doctests_are_recorded(tmp_path):
    source = 'def f(x):\n    """\n    >>> f(2)\n    2\n    """\n    return g(x)\n\ndef g(x):\n    return x\n'
    small(tmp_path, source=source)
    (tmp_path / "pack" / "other.py").write_text(source)
    output, _ = recorded(tmp_path, "out", "--doctest-modules", "--cwm-per-site", "9")
    assert "3 passed" in output and "cwm: 3 traces" in output
    assert found(tmp_path) == [
        ("pack/__init__.py::pack.f", "pack:f"),
        ("pack/other.py::pack.other.f", "pack.other:f"),
        ("test_it.py::test_it", "pack:f"),
    ]
    # A doctest has no function whose trace it could be.
    output, _ = recorded(tmp_path, "units", "--doctest-modules", "--cwm-unit", "test")
    assert found(tmp_path, "units") == [("test_it.py::test_it", "test_it.py:test_it")]
    assert "cwm: 1 traces" in output and "2 tests not recorded: they have no function of their own" in output


LINTER = """
import pytest

class Check(pytest.Item):
    def runtest(self):
        import pack
        pack.f(1)

class File(pytest.File):
    def collect(self):
        yield Check.from_parent(self, name="check")

def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".py" and file_path.parent.name == "pack":
        return File.from_parent(parent, path=file_path)
"""


def test_modules_that_a_linter_checks_are_recorded(tmp_path):
    small(tmp_path)
    (tmp_path / "conftest.py").write_text(LINTER)
    recorded(tmp_path, "out", "--cwm-per-site", "9")
    assert found(tmp_path) == [("pack/__init__.py::check", "pack:f"), ("test_it.py::test_it", "pack:f")]


def test_modules_that_hold_tests_are_named(tmp_path):
    small(tmp_path, source="from pack.inline import g\ndef f(x):\n    return g(x)\n")
    (tmp_path / "pack" / "inline.py").write_text("def g(x):\n    return x\ndef test_g():\n    assert g(1) == 1\n")
    output, _ = recorded(tmp_path, "out", "-o", "python_files=*.py")
    assert "2 passed" in output and "not recorded since they hold tests: pack/inline.py" in output
    assert found(tmp_path) == [("test_it.py::test_it", "pack:f")]


@pytest.mark.parametrize("way", ["dots", "link"])
def test_packages_imported_through_other_names(tmp_path, way):
    root = small(tmp_path / "real", "src/pack")
    (tmp_path / "link").symlink_to(root)
    (root / "tests").mkdir()
    (root / "test_it.py").rename(root / "tests" / "test_it.py")
    path = str({"dots": root / "tests" / ".." / "src", "link": tmp_path / "link" / "src"}[way])
    (root / "conftest.py").write_text(f"import sys\nsys.path.insert(0, {path!r})\n")
    for unit in ("call", "test"):
        output, _ = recorded(root, unit, "--cwm-unit", unit)
        function = "pack:f" if unit == "call" else "tests/test_it.py:test_it"
        assert found(root, unit) == [("tests/test_it.py::test_it", function)], output
    [metadata] = [m for _, m, _ in cwm.TraceReader(root / "call" / "main.cwmtraces").entries()]
    assert (metadata["path"], metadata["site"]) == ("src/pack/__init__.py", "tests/test_it.py:3")
