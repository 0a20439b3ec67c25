"""Stores to Parquet and JSONL and back, and what `datasets` makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core.cli import main
from cwm_core.corpus.generator import generate
from cwm_core.formats import traces as exchange
from cwm_core.trace import StoredTrace

KINDS = ["jsonl", "parquet"]
ODD = "class D:\n    def __repr__(self):\n        return '\\ud800\\x00é😀'\ndef f():\n    d = D()\n    return d\n"


def skip_without_pyarrow(kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with cwm.TraceWriter("some.cwmtraces") as writer:
        for seed in range(300):
            trace = cwm.record_source(*generate(seed))
            writer.add(trace, key=f"generated/{seed}" if seed else None, source="generator", license="MIT", seed=seed)
        writer.add(cwm.record_source(ODD, "f()"), key="odd\n\u2028", source=[1, {"a": None}], license="\ud800")
        writer.add(cwm.Recorder(capture_output=True).record(lambda: print("é")))
    return Path("some.cwmtraces")


def entries(path: str | Path) -> list[StoredTrace]:
    reader = cwm.TraceReader(path)
    reader.verify()
    return list(reader.entries())


@pytest.mark.parametrize("kind", KINDS)
def test_comes_back_equal(kind, store, capsys, monkeypatch):
    skip_without_pyarrow(kind)
    monkeypatch.setattr(exchange, "_GROUP_ROWS", 100)
    assert main(["export", str(store), "-o", f"out.{kind}"]) == 0
    assert main(["import", f"out.{kind}", "-o", "back.cwmtraces"]) == 0
    assert capsys.readouterr() == ("", f"cwm export: out.{kind}: 302 traces\ncwm import: back.cwmtraces: 302 traces\n")
    assert entries("back.cwmtraces") == entries(store)
    assert sorted(path.name for path in Path().iterdir()) == sorted(["back.cwmtraces", f"out.{kind}", store.name])


@pytest.mark.parametrize("kind", KINDS)
def test_datasets_reads_it(kind, store, tmp_path, monkeypatch):
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    datasets = pytest.importorskip("datasets")
    main(["export", str(store), "-o", f"out.{kind}"])
    builder = {"jsonl": "json", "parquet": "parquet"}[kind]
    rows = datasets.load_dataset(builder, data_files=f"out.{kind}", split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == [
        "key", "source", "license", "outcome", "frames", "context", "text", "metadata", "trace",
    ]  # fmt: skip
    assert len(rows) == 302
    for row, (key, metadata, trace) in zip(rows, entries(store), strict=True):
        plain = "seed" in metadata
        assert (row["key"], row["source"], row["license"]) == (key, *(("generator", "MIT") if plain else (None, None)))
        assert (row["frames"], row["context"], row["text"]) == (len(trace), trace.context, trace.to_text())
        assert row["outcome"] == metadata["outcome"] and json.loads(row["metadata"]) == metadata
    # What datasets writes can be imported, too.
    if kind == "parquet":
        rows.select(range(10, 20)).to_parquet("part.parquet")
        assert main(["import", "part.parquet", "-o", "part.cwmtraces"]) == 0
    else:
        rows.select(range(10, 20)).to_json("part.jsonl")
        assert main(["import", "part.jsonl", "-o", "part.cwmtraces"]) == 0
    assert entries("part.cwmtraces") == entries(store)[10:20]


def test_an_empty_store_comes_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cwm.TraceWriter("empty.cwmtraces").close()
    for kind in KINDS:
        skip_without_pyarrow(kind)
        assert main(["export", "empty.cwmtraces", "-o", f"empty.{kind}"]) == 0
        assert main(["import", f"empty.{kind}", "-o", f"{kind}.cwmtraces"]) == 0
        assert entries(f"{kind}.cwmtraces") == []


def test_imports_folders_and_several_files(store, capsys):
    traces = [trace for _, _, trace in entries(store)[:3]]
    for name, trace in zip(("b", "deep/a.b", "deep/c"), traces, strict=True):
        Path("folder", name).parent.mkdir(parents=True, exist_ok=True)
        trace.save(Path("folder", name + ".cwmtrace"))
    traces[0].save("single.cwmtrace")
    assert main(["import", "folder", "single.cwmtrace", str(store), "-o", "all.cwmtraces"]) == 0
    found = entries("all.cwmtraces")
    assert [(entry.key, entry.metadata["source"]) for entry in found[:4]] == [
        ("b", "folder"), ("deep/a.b", "deep"), ("deep/c", "deep"), ("single", Path.cwd().name),
    ]  # fmt: skip
    assert [entry.trace for entry in found[:3]] == traces and found[4:] == entries(store)
    assert found[0].metadata == {"source": "folder", "outcome": "returned"}  # what recorded it is not known
    # A folder of stores.
    store.rename("folder/some.cwmtraces")
    Path("folder/b.cwmtrace").unlink()
    assert main(["import", "folder", "-o", "more.cwmtraces"]) == 0
    assert len(entries("more.cwmtraces")) == 2 + 302


def failure(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_names_that_are_not_unicode_become_keys(tmp_path):
    folder = tmp_path / os.fsdecode(b"f\xe9")
    folder.mkdir()
    cwm.record_source("def f(): return 1", "f()").save(folder / os.fsdecode(b"t\xe9.cwmtrace"))
    exchange.import_traces([folder], tmp_path / "a.cwmtraces")
    exchange.import_traces([folder / os.fsdecode(b"t\xe9.cwmtrace")], tmp_path / "b.cwmtraces")
    for name in ("a", "b"):
        (entry,) = entries(tmp_path / f"{name}.cwmtraces")
        assert (entry.key, entry.metadata["source"]) == ("t\ufffd", "f\ufffd")


def test_mistakes_leave_nothing_behind(store, capsys):
    line = '{"key": "a", "metadata": "{}", "trace": %s}\n'
    good = line % json.dumps(exchange.base64.b64encode(entries(store)[1].trace.to_bytes()).decode())
    Path("there.jsonl").write_text("mine")
    Path("twice.jsonl").write_text(good * 2)
    Path("broken.jsonl").write_text(good + line % '"AAAA"')
    Path("other.jsonl").write_text('{"text": "a"}\n')
    Path("array.jsonl").write_text("[]\n")
    Path("cut.jsonl").write_text(good[:-10])
    Path("utf8.jsonl").write_bytes(b'"\xff"\n')
    Path("keys.jsonl").write_text(good.replace('"a"', "3"))
    Path("meta.jsonl").write_text(good.replace('"{}"', '"[]"'))
    Path("no.parquet").write_text("nothing")
    Path("empty").mkdir()
    before = sorted(path.name for path in Path().iterdir())
    new = "new.cwmtraces"
    for argv, message in [
        (("export", "none.cwmtraces", "-o", "x.jsonl"), "none.cwmtraces: No such file or directory"),
        (("export", str(store), "-o", "there.jsonl"), "there.jsonl: exists already and is never overwritten"),
        (("export", str(store), "-o", "x.csv"), "x.csv: expected a name that ends in .parquet or .jsonl"),
        (("export", "there.jsonl", "-o", "x.jsonl"), "there.jsonl: not a trace store (wrong magic)"),
        (("export", str(store), "-o", "none/x.jsonl"), "No such file or directory"),
        (("import", "twice.jsonl", "-o", str(store)), f"{store}: exists already and is never overwritten"),
        (("import", "twice.jsonl", "-o", "x.jsonl"), "x.jsonl: expected a name that ends in .cwmtraces"),
        (("import", "twice.jsonl", "-o", new), 'twice.jsonl: trace 0 already has the key "a"'),
        (
            ("import", "broken.jsonl", "-o", new),
            "broken.jsonl, line 2: not a valid stored trace: the header is missing",
        ),
        (
            ("import", "other.jsonl", "-o", new),
            "other.jsonl, line 1: no column 'trace'; only files that `cwm export` wrote can",
        ),
        (("import", "array.jsonl", "-o", new), "array.jsonl, line 1: not a JSON object, but a list"),
        (("import", "cut.jsonl", "-o", new), "cut.jsonl, line 1: not JSON: Unterminated string"),
        (
            ("import", "utf8.jsonl", "-o", new),
            "utf8.jsonl, line 1: not JSON: 'utf-8' codec can't decode byte 0xff in position 1",
        ),
        (("import", "keys.jsonl", "-o", new), "keys.jsonl, line 1: expected key to be a string or null and metadata"),
        (("import", "meta.jsonl", "-o", new), "meta.jsonl, line 1: expected key to be a string or null and metadata"),
        (
            ("import", "none", "-o", new),
            "none: expected a name that ends in .parquet or .jsonl or .cwmtraces or .cwmtrace",
        ),
        (("import", "none.jsonl", "-o", new), "none.jsonl: No such file or directory"),
        (("import", "empty", "-o", new), "empty: no *.cwmtrace or *.cwmtraces file in this folder"),
    ]:
        assert message in failure(capsys, *argv)
        assert sorted(path.name for path in Path().iterdir()) == before
    pytest.importorskip("pyarrow")
    assert failure(capsys, "import", "no.parquet", "-o", new).startswith(
        "cwm import: no.parquet: Parquet file size is 7 bytes"
    )
    assert sorted(path.name for path in Path().iterdir()) == before


def test_says_what_parquet_needs(store):
    script = """
        import sys
        sys.modules["pyarrow"] = None  # as if it were not installed
        from cwm_core.cli import main
        assert main(["export", "some.cwmtraces", "-o", "x.jsonl"]) == 0
        sys.exit(main(["export", "some.cwmtraces", "-o", "x.parquet"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        "cwm export: this needs pyarrow: run pip install '.[parquet]' in a checkout of cwm-core\n"
    )
    assert not list(Path().glob("*parquet*"))


def test_memory_does_not_grow_with_the_store(tmp_path):
    pytest.importorskip("pyarrow")
    script = """
        import resource, sys
        import cwm_core as cwm
        from cwm_core.formats import traces as exchange
        exchange._GROUP_BYTES = 1 << 20
        trace = cwm.record_source("def f(n):\\n    return [i * i for i in range(n)]\\n", "f(100)")
        with cwm.TraceWriter("x.cwmtraces") as writer:
            for number in range(int(sys.argv[1])):
                writer.add(trace, key=str(number))
        exchange.export_traces("x.cwmtraces", "x.parquet")
        exchange.export_traces("x.cwmtraces", "x.jsonl")
        exchange.import_traces(["x.parquet"], "y.cwmtraces")
        exchange.import_traces(["x.jsonl"], "z.cwmtraces")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peaks = []
    for count in (500, 5000):
        folder = tmp_path / str(count)
        folder.mkdir()
        command = [sys.executable, "-c", textwrap.dedent(script), str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, cwd=folder)
        peaks.append(int(done.stdout))
    text = 5000 * len(cwm.record_source("def f(n):\n    return [i * i for i in range(n)]\n", "f(100)").to_text())
    assert peaks[1] - peaks[0] < 30_000 < text / 1024, "KiB"
