"""The mark of the entry stands on the line of the ``def`` or ``class`` that the first frame enters."""

from __future__ import annotations

import asyncio
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import cwm_core as cwm
import pytest

MARK = "  # << START_OF_TRACE"


def keep(function: Any) -> Any:
    return function


def marked(trace: cwm.Trace) -> str:
    [line] = [line for line in trace.context.splitlines() if line.endswith(MARK)]
    return line.removesuffix(MARK).strip()


def loaded(path: Path, source: str) -> Any:
    path.write_text(source)
    module = types.ModuleType("marked")
    exec(compile(source, str(path), "exec"), vars(module))
    return module


HEAD = "def keep(function):\n    return function\n\ndef given(*_, **__):\n    return keep\n\n"

# The source of `f`, and its line that is marked.
SOURCES = {
    "decorator in parentheses": ("@(\n    keep\n)\ndef f():\n    return 1\n", "def f():"),
    "decorator over several lines": ("@given(\n    1,\n    a=2,\n)\ndef f():\n    return 1\n", "def f():"),
    "several": ("@keep\n@(\n\n  given\n  (1)\n)\n# a comment\n@keep\n\ndef f():\n    return 1\n", "def f():"),
    "arguments over several lines": ("@(\n    keep\n)\ndef f(\n    a=1,\n):\n    return 1\n", "def f("),
    "async def": ("@(\n    keep\n)\nasync def f():\n    return 1\n", "async def f():"),
    "generator": ("@(\n    keep)\ndef f():\n    yield 1\n", "def f():"),
    "nested function": (
        "def make():\n    @(\n        keep\n    )\n    def f():\n        return 1\n    return f\nf = make()\n",
        "def f():",
    ),
    "method": (
        "class C:\n    @(\n        staticmethod\n    )\n    def f():\n        return 1\nf = C.f\n",
        "def f():",
    ),
    "one name twice": (
        "@(\n    keep\n)\ndef f():\n    return 0\n\n@(\n    keep\n)\ndef f():  # second\n    return 1\n",
        "def f():  # second",
    ),
    "lambda": ("f = (\n    lambda: 1\n)\n", "lambda: 1"),
    "lambda in a decorator": (
        "@(\n    lambda function: (lambda: 1)\n)\ndef f():\n    return 0\n",
        "lambda function: (lambda: 1)",
    ),
    "lambda beside an at sign": ("a = b = 3\nf = (a\n@(lambda: 1)) if not a else (\nlambda: 1)\n", "lambda: 1)"),
    "without a decorator": ("def f():\n    return 1\n", "def f():"),
    "decorator that is a matrix product": ("@(keep\n  if 1 else keep\n  @ keep)\ndef f():\n    return 1\n", "def f():"),
    "end without a newline": ("@(\n    keep\n)\ndef f(): return 1", "def f(): return 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_the_mark_of_a_function(tmp_path: Path, name: str) -> None:
    source, line = SOURCES[name]
    module = loaded(tmp_path / "marked.py", HEAD + source)
    assert marked(cwm.record(module.f)) == line


def test_the_mark_of_a_class() -> None:
    with cwm.Recorder() as traces:

        @(
            keep
        )  # fmt: skip
        class First:
            a = 1

        @(keep)
        @keep
        class Second(First):
            b = 1

        class Third:
            c = 1

    assert [marked(trace) for trace in traces if not trace.frames[0].line.strip().startswith("def keep")] == [
        "class First:",
        "class Second(First):",
        "class Third:",
    ]


def test_the_mark_of_a_coroutine_in_a_block() -> None:
    @(
        keep
    )  # fmt: skip
    async def waits() -> int:
        return 1

    with cwm.Recorder() as traces:
        asyncio.run(waits())
    assert [marked(trace) for trace in traces] == ["async def waits() -> int:"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters are new in 3.12")
def test_the_mark_of_type_parameters(tmp_path: Path) -> None:
    module = loaded(
        tmp_path / "marked.py",
        HEAD + "def make(block):\n    with block as traces:\n        @(\n            keep\n        )\n"
        "        def f[T](x: T) -> T:\n            return x\n    return traces, f\n",
    )
    traces, f = module.make(cwm.Recorder(scope=[tmp_path]))
    assert marked(traces[0]) == "def f[T](x: T) -> T:"
    assert marked(cwm.record(f, 1)) == "def f[T](x: T) -> T:"


def test_a_source_with_warnings_of_its_own_gives_none(tmp_path: Path) -> None:
    path = tmp_path / "warns.py"
    source = HEAD + "@(\n    keep\n)\ndef f():\n    return '\\d'\n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = loaded(path, source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert marked(cwm.record(module.f)) == "def f():"


def test_a_source_that_no_longer_parses(tmp_path: Path) -> None:
    """If the lines differ, for example in another version, the mark is where the code says that it begins."""
    module = loaded(tmp_path / "marked.py", HEAD + "@(\n    keep\n)\ndef f():\n    return 1\n")
    (tmp_path / "marked.py").write_text(HEAD + "@(\n    keep\n\ndef f(:\n")
    assert marked(cwm.record(module.f)) == "keep"
