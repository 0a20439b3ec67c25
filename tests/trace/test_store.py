"""Trace stores against plain lists; killed at every byte, damaged at every byte, with full disks and many processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core.corpus.generator import generate
from hypothesis import given
from hypothesis import strategies as st

HEADER, HEAD = 32, 64


def trace_of(seed: int) -> cwm.Trace:
    return cwm.record_source(*generate(seed))


@pytest.fixture(scope="module")
def traces() -> list[cwm.Trace]:
    return [trace_of(seed) for seed in range(1000)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.cwmtraces"


def write(path: Path, traces: list[cwm.Trace], *, append: bool = False) -> None:
    with cwm.TraceWriter(path, append=append) as writer:
        for trace in traces:
            writer.add(trace)


def whole_blocks(sizes: list[tuple[int, int]], length: int) -> tuple[int, int]:
    """(traces, bytes) of the last whole block of a file cut to a length, from (bytes, traces) after each block."""
    size, traces = max(pair for pair in [(0, 0), *sizes] if pair[0] <= length)
    return traces, size


# ---- what it gives


def test_by_index_by_key_and_in_order(path, traces):
    with cwm.TraceWriter(path) as writer:
        for number, trace in enumerate(traces):
            assert writer.add(trace, key=f"generated/{number}" if number % 2 else None, number=number) == number
        assert len(writer) == len(traces) and writer.cut_bytes == 0
    reader = cwm.TraceReader(path)
    assert len(reader) == len(traces) and list(reader) == traces and reader.torn_bytes == 0
    for number in random.Random(0).sample(range(len(traces)), 200):
        assert reader[number] == traces[number] == reader[number - len(traces)]
        assert reader.metadata(number)["number"] == number
        key = f"generated/{number}"
        assert (key in reader) == (number % 2 == 1) and reader.key(number) == (key if number % 2 else None)
        assert reader.get(key) == (traces[number] if number % 2 else None)
        if number % 2:
            assert reader[key] == traces[number] and reader.metadata(key) == reader.metadata(number)
        else:
            with pytest.raises(KeyError, match=key):
                reader[key]
    assert list(reader.keys()) == [f"generated/{n}" if n % 2 else None for n in range(len(traces))]
    for number, (key, metadata, trace) in enumerate(reader.entries()):
        assert (key, metadata["number"], trace) == (reader.key(number), number, traces[number])
    for index in (len(traces), -len(traces) - 1, 10**18):
        with pytest.raises(IndexError, match=f"trace index {index} is out of range for a store of {len(traces)}"):
            reader[index]
    with pytest.raises(TypeError):
        reader[1.0]
    assert 3 not in reader
    reader.verify()
    assert repr(reader) == f"<TraceReader of 1,000 traces in '{path}'>"
    # Together they take far less than one by one.
    assert path.stat().st_size < sum(len(trace.to_bytes()) for trace in traces) / 2


def test_metadata_is_any_json_and_the_rest_is_filled_in(path, traces):
    raised = cwm.record_source("def f():\n    raise ValueError(1)\n", "f()")
    cut = cwm.Recorder(max_frames=3).record_source("def f():\n    return 1\n", "f()")
    parsed = cwm.Trace.parse(traces[0].to_text().removesuffix("<|end_of_text|>")).trace
    given = {"source": "é\ud800", "license": None, "nested": [1, 2.5, {"a": [True, {}]}], "outcome": "mine"}
    with cwm.TraceWriter(path) as writer:
        for trace in (traces[0], raised, cut, parsed):
            writer.add(trace)
        writer.add(traces[0], **given)
        writer.add(traces[0], python="3.0", cwm_core=None)
        for wrong in ({"x": object()}, {"x": {1, 2}}, {"x": float("nan")}):
            with pytest.raises((TypeError, ValueError)):
                writer.add(traces[0], **wrong)
    reader = cwm.TraceReader(path)
    assert [reader.metadata(n)["outcome"] for n in range(4)] == ["returned", "raised", "truncated", "unknown"]
    versions = {"python": ".".join(map(str, sys.version_info[:3])), "cwm_core": "0.1.0"}
    assert reader.metadata(0) == versions | {"outcome": "returned"}
    assert reader.metadata(4) == versions | given
    assert reader.metadata(5) == {"python": "3.0", "cwm_core": None, "outcome": "returned"}


def test_a_key_is_there_once(path, traces):
    with cwm.TraceWriter(path) as writer:
        writer.add(traces[0], key="a")
        writer.flush()
        writer.add(traces[1], key="b")
        for key, index in (("a", 0), ("b", 1)):  # in the file, and on its way
            with pytest.raises(ValueError, match=f'trace {index} already has the key "{key}"'):
                writer.add(traces[2], key=key)
        assert len(writer) == 2
    with cwm.TraceWriter(path, append=True) as writer:
        writer.add(traces[2], key="")
        for key in ("a", "b", ""):
            with pytest.raises(ValueError, match="already"):
                writer.add(traces[3], key=key)
        with pytest.raises(ValueError, match="the key has 65537 bytes"):
            writer.add(traces[3], key="x" * 65537)
        writer.add(traces[3], key="x" * 65536)
    reader = cwm.TraceReader(path)
    assert list(reader) == traces[:4] and reader["b"] == traces[1] and reader[""] == traces[2]
    reader.verify()


keys = st.none() | st.text(max_size=3)
metadata = st.dictionaries(
    st.text(max_size=5).filter(lambda name: name != "key"), st.integers() | st.text(), max_size=2
)
entry = st.tuples(st.integers(0, 50), keys, metadata)


@given(sessions=st.lists(st.lists(entry | st.just("flush"), max_size=8), min_size=1, max_size=6))
def test_equals_a_list(sessions, traces, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "x.cwmtraces"
    expected: list[tuple[str | None, dict, cwm.Trace]] = []
    for session in sessions:
        with cwm.TraceWriter(path, append=True) as writer:
            for step in session:
                if step == "flush":
                    writer.flush()
                    continue
                number, key, named = step
                is_known = key is not None and any(key == known for known, _, _ in expected)
                with pytest.raises(ValueError) if is_known else contextlib.nullcontext():
                    assert writer.add(traces[number], key, **named) == len(expected)
                    expected.append((key, named, traces[number]))
    reader = cwm.TraceReader(path)
    assert len(reader) == len(expected)
    for index, ((key, named, trace), found) in enumerate(zip(expected, reader.entries(), strict=True)):
        assert (found.key, found.trace) == (key, trace) and found.metadata.items() >= named.items()
        assert reader[index] == trace
        if key is not None:
            assert reader[key] == trace
    reader.verify()


def test_a_large_trace_has_a_block_of_its_own(path, traces):
    large = cwm.record_source(
        "def f(n):\n    x = []\n    for i in range(n):\n        x.append(i)\n    return x\n", "f(5000)"
    )
    write(path, [traces[0], large, *traces[1:3], large])
    assert list(cwm.TraceReader(path)) == [traces[0], large, *traces[1:3], large]
    cwm.TraceReader(path).verify()


def test_many_sessions(path, traces):
    for number, trace in enumerate(traces[:300]):
        with cwm.TraceWriter(path, append=True) as writer:
            writer.add(trace, key=str(number))
    reader = cwm.TraceReader(path)
    assert list(reader) == traces[:300]
    assert all(reader[str(number)] == traces[number] for number in range(300))
    reader.verify()


def test_an_empty_store(path):
    cwm.TraceWriter(path).close()
    reader = cwm.TraceReader(path)
    assert len(reader) == 0 and list(reader) == [] and "a" not in reader and reader.torn_bytes == 0
    reader.verify()
    with cwm.TraceWriter(path, append=True) as writer:
        assert len(writer) == 0


def test_a_writer_keeps_added_traces(path, traces):
    with pytest.raises(ZeroDivisionError), cwm.TraceWriter(path) as writer:
        writer.add(traces[0])
        raise ZeroDivisionError
    assert list(cwm.TraceReader(path)) == traces[:1]
    writer.close()
    for use in (lambda: writer.add(traces[0]), writer.flush):
        with pytest.raises(ValueError, match=r"some\.cwmtraces: the writer is closed"):
            use()
    forgotten = cwm.TraceWriter(path, append=True)
    forgotten.add(traces[1])
    del forgotten
    assert list(cwm.TraceReader(path)) == traces[:2]


def test_files_that_are_not_stores(path, tmp_path, traces):
    with pytest.raises(FileNotFoundError, match=r"some\.cwmtraces"):
        cwm.TraceReader(path)
    with pytest.raises(FileNotFoundError):
        cwm.TraceWriter(tmp_path / "none" / "x")
    with pytest.raises(IsADirectoryError):
        cwm.TraceReader(tmp_path)
    write(path, traces[:1])
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"some\.cwmtraces"):
        cwm.TraceWriter(path)
    assert path.read_bytes() == before
    for content, message in [
        (b"nothing at all", "not a trace store"),
        (traces[0].to_bytes(), "not a trace store"),
        (
            before[:8] + b"\7" + before[9:],
            "trace store version 7 with traces of version 2; this build reads version 1 with traces of version 2",
        ),
        (before[:12] + b"\7" + before[13:], "trace store version 1 with traces of version 7"),
        (before[:20] + b"\7" + before[21:], r"damaged header \(checksum mismatch\)"),
    ]:
        path.write_bytes(content)
        for use in (cwm.TraceReader, lambda path: cwm.TraceWriter(path, append=True)):
            with pytest.raises(ValueError, match=rf"some\.cwmtraces: {message}"):
                use(path)
        assert path.read_bytes() == content


# ---- killed, damaged, full


@pytest.fixture(scope="module")
def sessions(traces, tmp_path_factory):
    """Two sessions: for each, the file before it, the whole file after it, and (bytes, traces) after each write."""
    path = tmp_path_factory.mktemp("sessions") / "x.cwmtraces"
    out = []
    for numbers in ((0, 1, 2, 3, 4), (5, 6, 7)):
        before = path.read_bytes() if path.exists() else b""
        with cwm.TraceWriter(path, append=True) as writer:
            sizes = [(len(before), numbers[0]), (path.stat().st_size, numbers[0])]
            for number in numbers:
                writer.add(traces[number], key=f"k{number}")
                if number != numbers[0]:  # the first two share a block
                    writer.flush()
                    sizes.append((path.stat().st_size, number + 1))
        size = path.stat().st_size
        out.append((before, path.read_bytes(), [*sizes, (size - HEAD, len(writer)), (size, len(writer))]))
    return out


@pytest.mark.parametrize("session", [0, 1])
def test_killed_at_every_byte(session, sessions, path, traces):
    """The file of a session, cut anywhere: whole blocks are there, the rest is reported, cut, and written again."""
    before, after, sizes = sessions[session]
    assert after.startswith(before)
    for length in range(len(before), len(after) + 1):
        path.write_bytes(after[:length])
        count, size = whole_blocks(sizes, length)
        reader = cwm.TraceReader(path)
        assert (len(reader), reader.torn_bytes) == (count, length - size), length
        assert list(reader) == traces[:count]
        assert [n for n in range(9) if f"k{n}" in reader] == list(range(count))
        reader.verify()
        with cwm.TraceWriter(path, append=True) as writer:
            assert writer.cut_bytes == length - size
            for number in range(count):
                with pytest.raises(ValueError, match="already"):
                    writer.add(traces[number], key=f"k{number}")
            writer.add(traces[count], key=f"k{count}")
        again = cwm.TraceReader(path)
        assert list(again) == traces[: count + 1] and again.torn_bytes == 0
        assert again[f"k{count}"] == traces[count]
        assert list(reader) == traces[:count]  # who had it open sees what it saw


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_flipped_bit_anywhere(is_closed, sessions, path, traces):
    """Reading gives an error or the right trace; a part that looks like a torn tail is reported as one."""
    _, whole, sizes = sessions[0]
    count = len(whole) if is_closed else sizes[-3][0]
    rng = random.Random(0)
    for place in range(count):
        damaged = bytearray(whole[:count])
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        found, met_damage = set(), False
        try:
            reader = cwm.TraceReader(path)
        except ValueError as error:
            assert str(path) in str(error)
            continue
        for number in range(5):
            for which in (number, f"k{number}"):
                try:
                    assert reader[which] == traces[number]
                    assert reader.metadata(which)["outcome"] in ("returned", "raised")
                    found.add(which)
                except ValueError as error:
                    assert f"{path}: damaged at byte " in str(error)
                    met_damage = True
                except (IndexError, KeyError):
                    assert reader.torn_bytes > 0
        assert len(found) == 10 or met_damage or reader.torn_bytes
        if not reader.torn_bytes:
            with pytest.raises(ValueError, match="damaged at byte"):
                reader.verify()


def test_blocks_behind_damage_are_not_lost(path, traces):
    with cwm.TraceWriter(path) as writer:
        sizes = []
        for number in range(9):
            writer.add(traces[number], key=str(number))
            writer.flush()
            sizes.append(path.stat().st_size)
        content = bytearray(path.read_bytes())
    content[sizes[3] : sizes[4]] = bytes(sizes[4] - sizes[3])
    path.write_bytes(content)
    reader = cwm.TraceReader(path)
    assert len(reader) == 9 and reader.torn_bytes == 0
    for number in {*range(9)} - {4}:
        assert reader[number] == traces[number] == reader[str(number)]
    for use in (lambda: reader[4], lambda: reader["4"], reader.verify, lambda: list(reader)):
        with pytest.raises(ValueError, match="damaged at byte"):
            use()
    # Going on would cut them off.
    with pytest.raises(ValueError, match=f"damaged at byte {sizes[3]}: expected a block, got other bytes"):
        cwm.TraceWriter(path, append=True)
    assert path.read_bytes() == content


@given(data=st.binary(max_size=300), at=st.integers(0, 2000), is_inserted=st.booleans())
def test_any_bytes_are_refused_or_right(data, at, is_inserted, sessions, traces, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "x.cwmtraces"
    whole = sessions[1][1]
    path.write_bytes(whole[:at] + data + whole[at + (0 if is_inserted else len(data)) :])
    with contextlib.suppress(ValueError):
        reader = cwm.TraceReader(path)
        for number in range(len(reader)):
            with contextlib.suppress(ValueError):
                assert reader[number] == traces[number]


WRITER = """
    import sys
    import cwm_core as cwm
    from cwm_core.corpus.generator import generate
    with cwm.TraceWriter(sys.argv[1], append=True) as writer:
        number = len(writer)
        while True:
            writer.add(cwm.record_source(*generate(number % 1000)), key=str(number))
            number += 1
            if number % 7 == 0:
                writer.flush()
                print(number, flush=True)
            if number % 400 == 0:
                writer.close()
                writer = cwm.TraceWriter(sys.argv[1], append=True)
"""


def test_a_writer_killed_at_random_moments(path, traces):
    """Everything reported as flushed survives a kill at any moment, and nothing else appears."""
    rng, count = random.Random(0), 0
    for _ in range(8):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            flushed = int(writer.stdout.readline())
            time.sleep(rng.uniform(0, 0.2))
            writer.send_signal(signal.SIGKILL)
            flushed = max([flushed, *map(int, writer.stdout.read().split())])
        reader = cwm.TraceReader(path)
        assert len(reader) >= flushed > count
        assert all(trace == traces[number % 1000] for number, trace in enumerate(reader))
        assert all(reader[str(number)] == traces[number % 1000] for number in range(0, len(reader), 17))
        count = len(reader)


FULL = """
    import resource, sys
    import cwm_core as cwm
    from cwm_core.corpus.generator import generate
    traces = [cwm.record_source(*generate(seed)) for seed in range(1000)]
    with cwm.TraceWriter(sys.argv[1]) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        added = []
        for number, trace in enumerate(traces):
            try:
                writer.add(trace)
                added.append(number)
            except OSError as error:
                assert (error.errno, error.filename) == (27, sys.argv[1]), error
        try:
            writer.close()
            raise SystemExit("closed")
        except OSError:
            pass
        reader = cwm.TraceReader(sys.argv[1])
        print(len(reader), reader.torn_bytes, *added)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


@pytest.mark.parametrize("limit", [40, 10_000, 50_000])
def test_a_full_disk(limit, path, traces):
    """RLIMIT_FSIZE stands in for a disk that is full in the middle of a block, and then is not."""
    command = [sys.executable, "-c", textwrap.dedent(FULL), path, str(limit)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    readable, torn, *added = map(int, done.stdout.split())
    assert readable < len(added) < len(traces) and torn == 0
    assert (readable > 0) == (limit == 50_000)
    reader = cwm.TraceReader(path)  # all that was taken, in the end
    assert list(reader) == [traces[number] for number in added]
    reader.verify()


# ---- several at once


def test_one_writer_at_a_time(path, traces):
    with cwm.TraceWriter(path) as writer:
        writer.add(traces[0])
        with pytest.raises(BlockingIOError, match=r"some\.cwmtraces: another writer has this file open"):
            cwm.TraceWriter(path, append=True)
        command = [sys.executable, "-c", "import cwm_core, sys; cwm_core.TraceWriter(sys.argv[1], append=True)", path]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "BlockingIOError" in done.stderr
        writer.add(traces[1])
    write(path, traces[2:3], append=True)
    assert list(cwm.TraceReader(path)) == traces[:3]


def test_reading_while_it_is_written(path, traces):
    with cwm.TraceWriter(path) as writer:
        for number, trace in enumerate(traces[:50]):
            assert len(cwm.TraceReader(path)) == number
            writer.add(trace, key=str(number))
            writer.flush()
            reader = cwm.TraceReader(path)
            assert list(reader) == traces[: number + 1] and reader[str(number)] == trace
    assert len(reader) == 50 and reader["3"] == traces[3]


def test_threads_share_a_reader(path, traces):
    write(path, traces)
    reader = cwm.TraceReader(path)

    def read(seed: int) -> bool:
        numbers = random.Random(seed).sample(range(len(traces)), 300)
        return all(reader[number] == traces[number] for number in numbers) and list(reader) == traces

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))


def test_threads_share_a_writer(path, traces):
    with cwm.TraceWriter(path) as writer, ThreadPoolExecutor(8) as pool:
        indices = list(pool.map(lambda number: writer.add(traces[number], key=str(number)), range(1000)))
    reader = cwm.TraceReader(path)
    assert sorted(indices) == list(range(1000))
    assert all(reader[index] == traces[number] == reader[str(number)] for number, index in enumerate(indices))


def first_and_last(reader: cwm.TraceReader) -> list[cwm.Trace]:
    return [reader[0], reader[-1], reader["last"]]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_share_a_reader(method, path, traces):
    with cwm.TraceWriter(path) as writer:
        writer.add(traces[0])
        writer.add(traces[1], key="last")
    reader = cwm.TraceReader(path)
    assert pickle.loads(pickle.dumps(reader))[0] == traces[0] == reader[0]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(first_and_last, [reader] * 4) == [[traces[0], traces[1], traces[1]]] * 4
        pool.close()  # workers end by themselves: forked ones inherit whatever handles SIGTERM in this process
        pool.join()


def test_a_forked_process_does_not_write(path, traces):
    writer = cwm.TraceWriter(path)
    writer.add(traces[0])
    child = os.fork()
    if child == 0:
        try:
            writer.add(traces[1])
        except ValueError as error:
            if "the writer belongs to process" in str(error):
                del writer
                os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert path.stat().st_size == HEADER
    child = os.fork()
    if child == 0:
        signal.pause()
    try:  # the child has the file open still
        writer.close()
        write(path, traces[1:2], append=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert list(cwm.TraceReader(path)) == traces[:2]


def test_a_large_store_takes_little_memory(path):
    """Going through a store, and opening it, takes what a block takes."""
    trace = cwm.record_source("def f(n):\n    return [i * i for i in range(n)]\n", "f(300)")
    with cwm.TraceWriter(path) as writer:
        for number in range(20_000):
            writer.add(trace, key=f"{number:032}", number=number)
    script = """
        import resource, sys
        import cwm_core as cwm
        cwm.TraceReader(sys.argv[1])[0]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reader = cwm.TraceReader(sys.argv[1])
        assert sum(len(trace) for trace in reader) and reader[f"{777:032}"] and f"{777:033}" not in reader
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), path]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 10_000, "KiB"


def test_a_key_with_a_lone_surrogate_is_not_there(path, traces):
    with cwm.TraceWriter(path) as writer:
        writer.add(traces[0], key="\ufffd")
        with pytest.raises(ValueError, match="surrogate"):
            writer.add(traces[0], key="\ud800")
    reader = cwm.TraceReader(path)
    assert reader.get("\ud800") is None and "\ud800" not in reader and len(reader) == 1
    with pytest.raises(KeyError):
        reader["\ud800"]


def test_a_closed_reader_reads_nothing_more(tmp_path):
    path = tmp_path / "one.cwmtraces"
    with cwm.TraceWriter(path) as writer:
        writer.add(cwm.record_source("", "1"), key="one")
        assert repr(writer) == f"<TraceWriter of 1 traces in {str(path)!r}>"
    with cwm.TraceReader(path) as reader:
        assert reader["one"].result == "1"
    assert repr(reader) == f"<TraceReader of {str(path)!r}, closed>"
    for use in (len, list, lambda reader: reader[0], lambda reader: "one" in reader):
        with pytest.raises(ValueError, match="the reader is closed"):
            use(reader)
    reader.close()
