"""Benchmark the making of a corpus: the cost of isolation, each part alone, the whole, and the same with a Python
tracer.

Samples are short generated programs (about 20 frames) and long ones (about 1,000). "cwm_core" is the whole pipeline as
`cwm corpus` runs it in two processes: every program twice, each time in a forked child in a sandbox, under two hash
seeds, with filters, tokens, and files. The peer is the same pipeline around the tracer of `tests/oracle.py`
(`sys.settrace`, `repr`, `json`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cwm_core as cwm
import pytest
from cwm_core import machines
from cwm_core.corpus import pipeline, recording, sandbox
from cwm_core.corpus.generator import generate
from cwm_core.corpus.pipeline import make_corpus
from cwm_core.corpus.recording import CorpusSettings, SampleRecorder, SandboxPair
from cwm_core.corpus.sample import Sample
from cwm_core.corpus.sandbox import RecordingSandbox, Run, RunResult
from cwm_core.corpus.unit import Unit
from cwm_core.support.pool import Pool, processes
from cwm_core.trace import source_context
from llama3 import rank_path

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
    provenance = {"source": "bench", "license": "MIT"}
    return [Unit(f"{i:06}", code, (call,), provenance=provenance) for i, (code, call) in enumerate(programs(length))]


@pytest.fixture(autouse=True)
def isolated() -> None:
    if reason := machines.bubblewrap_refusal():
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def counts(monkeypatch: Any, quick: bool) -> None:
    if quick:
        monkeypatch.setattr(f"{__name__}.COUNT", {"short": 20, "long": 4})


def measure(benchmark: Any, group: str, name: str, work: Callable[[], Any], samples: int) -> Any:
    benchmark.group = f"corpus: {group}"
    benchmark.extra_info = {"implementation": name, "samples": samples}
    return benchmark.pedantic(work, rounds=5, iterations=1, warmup_rounds=1)


FORKS = """
import os, sys
for line in sys.stdin:
    for _ in range(int(line)):
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
    print(flush=True)
"""


def bench_fork(benchmark: Any) -> None:
    """Measure the lower bound: a Python process that has imported nothing forks, and the child does nothing."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def fork() -> None:
            print(COUNT["short"], file=process.stdin, flush=True)
            process.stdout.readline()

        measure(benchmark, "short, 400 samples", "fork alone", fork, COUNT["short"])
        process.stdin.close()


@pytest.mark.parametrize("length", COUNT)
def bench_without_isolation(benchmark: Any, length: str) -> None:
    drawn = programs(length)
    group = f"{length}, {len(drawn)} samples"
    measure(benchmark, group, "recording alone", lambda: [cwm.record_source(*one) for one in drawn], len(drawn))


@pytest.mark.parametrize("length", COUNT)
def bench_isolated(benchmark: Any, length: str) -> None:
    runs = [Run(code, call) for code, call in programs(length)]
    with RecordingSandbox() as sandbox:
        results = measure(
            benchmark, f"{length}, {len(runs)} samples", "isolated", lambda: list(sandbox.run(runs)), len(runs)
        )
    assert all(result.trace is not None for result in results)


@pytest.mark.parametrize("length", COUNT)
def bench_isolated_twice(benchmark: Any, length: str) -> None:
    runs = [Run(unit.code, unit.calls[0]) for unit in units(length)]
    with SandboxPair(CorpusSettings(str(rank_path()))) as pair:
        work = lambda: list(pair.record(runs))  # noqa: E731
        measure(benchmark, f"{length}, {len(runs)} samples", "isolated, twice, effects", work, len(runs))


@pytest.mark.parametrize("length", COUNT)
def bench_filters(benchmark: Any, length: str) -> None:
    recorder = SampleRecorder(CorpusSettings(str(rank_path()), max_tokens=None))
    samples = []
    for unit in units(length):
        trace = cwm.record_source(unit.code, unit.calls[0])
        samples.append(Sample(unit.id, unit.code, unit.calls[0], trace, unit.provenance, trace))
    work = lambda: [recorder.filter(sample) for sample in samples]  # noqa: E731
    measure(benchmark, f"{length}, {len(samples)} samples", "filters and tokens alone", work, len(samples))


@pytest.fixture
def warm(monkeypatch: Any) -> Iterator[None]:
    """Keep sandboxes from the warm-up to the last round, because starting them takes about 0.5 s."""
    end = pipeline._close_recorder
    monkeypatch.setattr(pipeline, "_close_recorder", lambda: None)
    yield
    end()


@pytest.mark.parametrize("length", COUNT)
@pytest.mark.parametrize("workers", [2, 1])
def bench_pipeline(benchmark: Any, tmp_path: Path, warm: None, length: str, workers: int) -> None:
    with processes(workers) as pool:
        measure_pipeline(benchmark, tmp_path, length, "cwm_core" if workers == 2 else "cwm_core, one process", pool)


@pytest.mark.parametrize("length", COUNT)
def bench_python_tracer(benchmark: Any, tmp_path: Path, warm: None, monkeypatch: Any, length: str) -> None:
    """Run the pipeline in one process with a recorder in Python, whose traces are texts to parse."""
    monkeypatch.setattr(recording, "RecordingSandbox", PythonSandbox)
    monkeypatch.setattr(sandbox, "_result", parsed)
    with processes(1) as pool:
        measure_pipeline(benchmark, tmp_path, length, "python tracer, one process", pool)


def measure_pipeline(benchmark: Any, folder: Path, length: str, name: str, pool: Pool) -> None:
    made = units(length)
    folders = (folder / str(number) for number in range(10**6))
    # The tracer of the alternative calls `id`.
    settings = CorpusSettings(str(rank_path()), near_duplicates=1.0, max_tokens=None, allow_effects=frozenset({"id"}))
    work = lambda: make_corpus(next(folders), made, settings, description={}, pool=pool)  # noqa: E731
    summary = measure(benchmark, f"{length}, {len(made)} samples", name, work, len(made))
    assert summary.drops.total == len(made) and summary.tokens > 0
    benchmark.extra_info["tokens"] = summary.tokens


class PythonSandbox(RecordingSandbox):
    """A recording sandbox around a Python tracer."""

    _arguments = (str(HERE / "python_tracer.py"), str(Path(cwm.__file__).parents[1]))

    def __init__(self, *, paths: Sequence[str] = (), **options: Any) -> None:
        super().__init__(paths=[str(HERE), str(HERE.parent / "tests"), *paths], **options)


def parsed(run: Run, header: dict[str, Any], text: bytes) -> RunResult:
    """Return the result of a run in a `PythonSandbox`."""
    trace = cwm.Trace.parse(text.decode()).trace.with_context(source_context(run.code, run.call))
    return RunResult(trace, None, frozenset(header["effects"]), header["seconds"])
