"""Collect texts to tokenize, 20 MB of each kind: from this machine, or made by recording."""

from __future__ import annotations

import ast
import functools
import gettext
import random
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import cwm_core as cwm
import workloads
from cwm_core.corpus.generator import generate

MEGABYTES = 20


def take(texts: Iterable[str], megabytes: float) -> list[str]:
    """Return distinct texts up to a total size, or all if there are fewer."""
    taken: dict[str, None] = {}
    size = 0
    for text in texts:
        if size >= megabytes * 1e6:
            break
        if text not in taken:
            taken[text] = None
            size += len(text.encode())
    return list(taken)


def files(folder: str, pattern: str) -> list[Path]:
    """Return the texts in a fixed order that does not depend on folders."""
    found = sorted(Path(folder).rglob(pattern))
    random.Random(1).shuffle(found)
    return found


def read(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        try:
            yield path.read_text("utf-8")
        except (UnicodeDecodeError, OSError):
            continue


@functools.cache
def python_files() -> list[Path]:
    return [path for key in ("stdlib", "purelib") for path in files(sysconfig.get_path(key), "*.py")]


def python_source(megabytes: float = MEGABYTES) -> list[str]:
    """Return files of the standard library and of the installed packages."""
    return take(read(python_files()), megabytes)


def docstrings(source: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):
            nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    yield from filter(None, (ast.get_docstring(node) for node in nodes if isinstance(node, kinds)))


def translations() -> Iterator[str]:
    """Return the messages of each translated program, in each language."""
    for path in files("/usr/share/locale", "*.mo"):
        try:
            with open(path, "rb") as file:
                catalog = gettext.GNUTranslations(file)._catalog
        except (OSError, UnicodeDecodeError, LookupError):
            continue
        yield "\n".join(message for message in catalog.values() if isinstance(message, str))


def natural_language(megabytes: float = MEGABYTES) -> list[str]:
    """Return messages in many languages (one third, if there are any here), package descriptions, and docstrings."""
    foreign = take(translations(), megabytes / 3)
    size = sum(len(text.encode()) for text in foreign) / 1e6
    described = read(
        sorted(Path(sysconfig.get_path("purelib")).glob("*/METADATA")) + files("/usr/share/doc", "copyright")
    )
    written = ("\n\n".join(docstrings(source)) for source in read(python_files()))
    english = take((text for texts in (described, written) for text in texts if len(text) > 200), megabytes - size)
    texts = foreign + english
    random.Random(2).shuffle(texts)
    return texts


def recorded_workloads() -> list[cwm.Trace]:
    """Return a thousand frames of each."""
    recorder = cwm.Recorder(max_frames=1000)
    return [recorder.record(workload) for workload in workloads.WORKLOADS]


def traces(megabytes: float = MEGABYTES) -> list[cwm.Trace]:
    """Return recordings of the workloads, then of random programs, most of which have a dozen frames."""
    recorder = cwm.Recorder(max_frames=1000)
    recorded = recorded_workloads()
    size = sum(len(trace.to_text()) for trace in recorded)
    seed = 0
    while size < megabytes * 1e6:
        program = generate(seed)
        seed += 1
        trace = recorder.record_source(program.code, program.call)
        recorded.append(trace)
        size += len(trace.to_text())
    return recorded


def short_texts(number: int = 1000) -> list[str]:
    """Return texts of a few lines of Python each, 300 bytes on average."""
    lines = "\n".join(python_source(2)).split("\n")
    return ["\n".join(lines[start : start + 8]) for start in range(0, 8 * number, 8)]
