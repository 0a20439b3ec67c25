"""Making a corpus: what isolation costs, the parts alone and together, and the same pipeline around a Python tracer.

Samples are short programs that a generator wrote (some 20 frames) and long ones (some 1,000). "two processes" is the
whole pipeline as `cwm corpus` runs it: every program twice, each time in a forked child of its own in a sandbox, under
two hash seeds, with filters, tokens and files. The rival forks in the same sandbox, once a program; its tracer is that
of `tests/oracle.py` (`sys.settrace`, `repr`, `json`), its tokenizer tiktoken, and it has neither filters nor files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cwm_core as cwm
import pytest
from cwm_core import sandbox
from cwm_core.corpus import _worker, workers
from cwm_core.corpus.generator import generate
from cwm_core.corpus.pipeline import make_corpus
from cwm_core.corpus.pool import processes
from cwm_core.corpus.recording import Recorders, Recording, Settings
from cwm_core.corpus.sample import Sample
from cwm_core.corpus.unit import Unit
from cwm_core.corpus.workers import Order, Worker
from llama3 import rank_path, tiktoken_encoding

HERE = Path(__file__).parent
COUNT = {"short": 400, "long": 40}
LONG = """\
def f(n):
    seen = []
    for i in range(n):
        x = i * i % 7
        if x > 3:
            seen.append(x)
    return len(seen)
"""


def programs(length: str) -> list[tuple[str, str]]:
    if length == "long":
        return [(LONG, f"f({280 + i})") for i in range(COUNT["long"])]
    return [tuple(generate(seed)) for seed in range(COUNT["short"])]


def units(length: str) -> list[Unit]:
    provenance = {"source": "bench", "licence": "MIT"}
    return [Unit(f"{i:06}", code, (call,), provenance=provenance) for i, (code, call) in enumerate(programs(length))]


@pytest.fixture(autouse=True)
def isolated() -> None:
    if reason := sandbox.bubblewrap_refusal():
        pytest.skip(reason)


def measure(benchmark: Any, group: str, name: str, work: Callable[[], Any], samples: int) -> Any:
    benchmark.group = f"corpus: {group}"
    benchmark.extra_info = {"implementation": name, "samples": samples}
    return benchmark.pedantic(work, rounds=5, iterations=1, warmup_rounds=1)


def bench_fork(benchmark: Any) -> None:
    """The floor: this process forks, and the child does nothing."""

    def fork() -> None:
        for _ in range(COUNT["short"]):
            if (child := os.fork()) == 0:
                os._exit(0)
            os.waitpid(child, 0)

    measure(benchmark, "short, 400 samples", "fork alone", fork, COUNT["short"])


@pytest.mark.parametrize("length", COUNT)
def bench_without_isolation(benchmark: Any, length: str) -> None:
    drawn = programs(length)
    group = f"{length}, {len(drawn)} samples"
    measure(benchmark, group, "recording alone", lambda: [cwm.record_source(*one) for one in drawn], len(drawn))


@pytest.mark.parametrize("length", COUNT)
def bench_isolated(benchmark: Any, length: str) -> None:
    orders = [Order(code, call) for code, call in programs(length)]
    with Worker() as worker:
        answers = measure(
            benchmark, f"{length}, {len(orders)} samples", "isolated", lambda: list(worker.run(orders)), len(orders)
        )
    assert all(answer.trace is not None for answer in answers)


@pytest.mark.parametrize("length", COUNT)
def bench_isolated_twice(benchmark: Any, length: str) -> None:
    orders = [(unit, Order(unit.code, unit.calls[0])) for unit in units(length)]
    with Recorders(Settings(str(rank_path()))) as recorders:
        work = lambda: list(recorders.record(orders))  # noqa: E731
        measure(benchmark, f"{length}, {len(orders)} samples", "isolated, twice, effects", work, len(orders))


@pytest.mark.parametrize("length", COUNT)
def bench_filters(benchmark: Any, length: str) -> None:
    recording = Recording(Settings(str(rank_path())))
    samples = []
    for unit in units(length):
        trace = cwm.record_source(unit.code, unit.calls[0])
        samples.append(Sample(unit.id, unit.code, unit.calls[0], trace, unit.provenance, trace))
    work = lambda: [recording.judged(sample) for sample in samples]  # noqa: E731
    measure(benchmark, f"{length}, {len(samples)} samples", "filters and tokens alone", work, len(samples))


@pytest.mark.parametrize("length", COUNT)
def bench_pipeline(benchmark: Any, tmp_path: Path, length: str) -> None:
    """With two processes; starting them and their sandboxes, some 0.5 s, is in the warm-up."""
    made = units(length)
    folders = (tmp_path / str(number) for number in range(10**6))
    settings = Settings(str(rank_path()), near_duplicates=1.0)
    with processes(2) as pool:

        def work() -> Any:
            return make_corpus(next(folders), made, settings, description={}, pool=pool)

        summary = measure(benchmark, f"{length}, {len(made)} samples", "all, two processes", work, len(made))
    assert summary.drops.total == len(made)
    benchmark.extra_info["tokens"] = summary.tokens


class PythonWorker(Worker):
    """A worker around a Python tracer."""

    _script = (str(HERE / "python_tracer.py"), _worker.__file__)


@pytest.mark.parametrize("length", COUNT)
def bench_python_tracer(benchmark: Any, monkeypatch: Any, length: str) -> None:
    """Its answers are texts, which are not parsed."""
    encoding = tiktoken_encoding()
    orders = [Order(code, call) for code, call in programs(length)]
    monkeypatch.setattr(workers, "_answer", lambda order, header, text: text)

    def work() -> int:
        return sum(len(encoding.encode(text.decode(), allowed_special="all")) for text in worker.run(orders))

    with PythonWorker(paths=[str(HERE), str(HERE.parent / "tests")]) as worker:
        tokens = measure(benchmark, f"{length}, {len(orders)} samples", "python tracer", work, len(orders))
    benchmark.extra_info["tokens"] = tokens
