"""Compare a trace store with other ways to keep many traces: written, read in order, and read one by one.

All give the same `Trace` objects. Files hold the stored form of one trace each, as do the rows of SQLite and Parquet;
JSONL holds texts, as published data sets do. The store and SQLite wait for the disk when they close; the others do not.
`bytes` is the text form of the traces written or read, `stored bytes` what they take on disk.
"""

from __future__ import annotations

import gzip
import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core.corpus.generator import generate

LOOP = """
def f(n, x):
    seen = []
    for _ in range(n):
        x = x * 1103515245 % 65536
        seen.append(x)
    return sum(seen)
"""
CORPORA: dict[str, Callable[[int], cwm.Trace]] = {
    "short": lambda seed: cwm.record_source(*generate(seed)),
    "long": lambda n: cwm.record_source(LOOP, f"f({50 + n % 300}, {n * 7919})"),
}
COUNTS = {"short": 3000, "long": 200}
LOOKUPS = 200


class Store:
    """Keep traces in one `.cwmtraces` file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "all.cwmtraces"

    def write(self, traces: list[cwm.Trace]) -> None:
        with cwm.TraceWriter(self.path) as writer:
            for number, trace in enumerate(traces):
                writer.add(trace, key=f"trace/{number}")

    def open(self) -> None:
        self.reader = cwm.TraceReader(self.path)

    def stream(self) -> Iterator[cwm.Trace]:
        return iter(self.reader)

    def by_index(self, number: int) -> cwm.Trace:
        return self.reader[number]

    def by_key(self, number: int) -> cwm.Trace:
        return self.reader[f"trace/{number}"]


class Files:
    """Keep each trace in a `.cwmtrace` file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, traces: list[cwm.Trace]) -> None:
        for number, trace in enumerate(traces):
            trace.save(self.folder / f"{number}.cwmtrace")

    def open(self) -> None:
        self.count = len(list(self.folder.iterdir()))

    def stream(self) -> Iterator[cwm.Trace]:
        return map(self.by_key, range(self.count))

    def by_key(self, number: int) -> cwm.Trace:
        return cwm.Trace.load(self.folder / f"{number}.cwmtrace")


class Sqlite:
    """Keep traces in a table of index, key, and stored form."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "all.sqlite"

    def write(self, traces: list[cwm.Trace]) -> None:
        database = sqlite3.connect(self.path)
        database.execute("CREATE TABLE traces (number INTEGER PRIMARY KEY, key TEXT UNIQUE, trace BLOB)")
        rows = ((number, f"trace/{number}", trace.to_bytes()) for number, trace in enumerate(traces))
        database.executemany("INSERT INTO traces VALUES (?, ?, ?)", rows)
        database.commit()
        database.close()

    def open(self) -> None:
        self.database = sqlite3.connect(self.path)

    def stream(self) -> Iterator[cwm.Trace]:
        for (data,) in self.database.execute("SELECT trace FROM traces ORDER BY number"):
            yield cwm.Trace.from_bytes(data)

    def by_index(self, number: int) -> cwm.Trace:
        found = self.database.execute("SELECT trace FROM traces WHERE number = ?", (number,))
        return cwm.Trace.from_bytes(found.fetchone()[0])

    def by_key(self, number: int) -> cwm.Trace:
        found = self.database.execute("SELECT trace FROM traces WHERE key = ?", (f"trace/{number}",))
        return cwm.Trace.from_bytes(found.fetchone()[0])


class Jsonl:
    """Keep texts, compressed together by gzip."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "all.jsonl.gz"

    def write(self, traces: list[cwm.Trace]) -> None:
        with gzip.open(self.path, "wt", encoding="utf-8", compresslevel=6) as file:
            for number, trace in enumerate(traces):
                file.write(json.dumps({"key": f"trace/{number}", "text": trace.to_text()}) + "\n")

    def open(self) -> None:
        pass

    def stream(self) -> Iterator[cwm.Trace]:
        with gzip.open(self.path, "rt", encoding="utf-8") as file:
            for line in file:
                yield cwm.Trace.parse(json.loads(line)["text"]).trace


class Parquet:
    """Keep keys and stored forms, compressed by zstd, which pyarrow writes and reads in batches."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "all.parquet"

    def write(self, traces: list[cwm.Trace]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema([("key", pa.string()), ("trace", pa.binary())])
        with parquet.ParquetWriter(self.path, schema, compression="zstd") as writer:
            for start in range(0, len(traces), 1000):
                rows = enumerate(traces[start : start + 1000], start)
                keys, data = zip(*((f"trace/{number}", trace.to_bytes()) for number, trace in rows), strict=True)
                writer.write_batch(pa.record_batch([keys, data], schema=schema))

    def open(self) -> None:
        from pyarrow import parquet

        self.file = parquet.ParquetFile(self.path)

    def stream(self) -> Iterator[cwm.Trace]:
        for batch in self.file.iter_batches(batch_size=1000, columns=["trace"]):
            yield from map(cwm.Trace.from_bytes, batch.column("trace").to_pylist())


KEEPERS = {"cwm_core": Store, "a file a trace": Files, "SQLite": Sqlite, "JSONL, gzip": Jsonl, "Parquet": Parquet}
LOOKED_UP = ["cwm_core", "a file a trace", "SQLite"]


@pytest.fixture(scope="module", params=CORPORA)
def corpus(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def traces(corpus: str, quick: bool) -> list[cwm.Trace]:
    return [CORPORA[corpus](number) for number in range(10 if quick else COUNTS[corpus])]


def keeper(benchmark, what: str, implementation: str, folder: Path, traces: list[cwm.Trace], used: list[cwm.Trace]):
    """Return a written and opened file of the traces that the benchmark uses."""
    if implementation == "Parquet":
        pytest.importorskip("pyarrow")
    folder.mkdir(exist_ok=True)
    kept = KEEPERS[implementation](folder)
    kept.write(traces)
    kept.open()
    benchmark.group = f"store: {what}"
    benchmark.extra_info = {
        "implementation": implementation,
        "bytes": sum(len(trace.to_text()) for trace in used),
        "events": sum(len(trace) for trace in used),
        "stored_bytes": sum(file.stat().st_size for file in folder.iterdir()),
    }
    return kept


@pytest.mark.parametrize("implementation", KEEPERS)
def test_add(benchmark, corpus, traces, implementation, tmp_path) -> None:
    keeper(benchmark, f"write {corpus} traces", implementation, tmp_path / "first", traces, traces)
    numbers = iter(range(10**9))

    def write_anew() -> None:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        KEEPERS[implementation](folder).write(traces)

    benchmark(write_anew)


@pytest.mark.parametrize("implementation", KEEPERS)
def test_stream(benchmark, corpus, traces, implementation, tmp_path) -> None:
    kept = keeper(benchmark, f"read {corpus} traces in order", implementation, tmp_path, traces, traces)
    assert sum(len(trace) for trace in kept.stream()) == sum(map(len, traces))
    benchmark(lambda: [None for _ in kept.stream()])


@pytest.mark.parametrize("implementation", LOOKED_UP)
@pytest.mark.parametrize("way", ["index", "key"])
def test_look_up(benchmark, corpus, traces, way, implementation, tmp_path) -> None:
    if (way, implementation) == ("index", "a file a trace"):
        pytest.skip("files have names only")
    numbers = random.Random(0).choices(range(len(traces)), k=LOOKUPS)
    used = [traces[number] for number in numbers]
    kept = keeper(benchmark, f"{LOOKUPS} {corpus} traces by {way}", implementation, tmp_path, traces, used)
    look_up = kept.by_key if way == "key" else kept.by_index
    assert list(map(look_up, numbers)) == used
    benchmark(lambda: list(map(look_up, numbers)))
