"""Test token shards: written documents are read back, and damaged or truncated files are errors."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import cwm_core as cwm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = [np.int32, np.uint16, np.uint32, np.int64]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), vocab_size=st.sampled_from([1, 300, 65_536, 65_537, 128_256, 2**31]))
def test_round_trip(data, vocab_size):
    def document():
        dtype = data.draw(st.sampled_from(DTYPES))
        top = min(vocab_size - 1, np.iinfo(dtype).max)
        ids = np.array(data.draw(st.lists(st.integers(0, top), min_size=1, max_size=200)), dtype=dtype)
        mask = data.draw(st.none() | st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        span = st.integers(0, len(ids) - 1).flatmap(lambda i: st.tuples(st.just(i), st.integers(i + 1, len(ids))))
        spans = data.draw(st.dictionaries(st.sampled_from(["state", "action", "é"]), st.lists(span, max_size=5)))
        return ids, mask, data.draw(st.text(max_size=3)), spans

    documents = [document() for _ in range(data.draw(st.integers(1, 20)))]
    with tempfile.TemporaryDirectory() as folder:
        with cwm.ShardWriter(folder, vocab_size, shard_tokens=data.draw(st.integers(1, 1000))) as writer:
            for ids, mask, source, spans in documents:
                writer.add(ids, mask, source, spans)
            assert (writer.documents, writer.tokens) == (len(documents), sum(len(ids) for ids, *_ in documents))
        shards = cwm.Shards(folder)
        shards.verify()
        assert len(shards) == len(documents)
        assert shards.tokens == sum(len(ids) for ids, *_ in documents)
        assert shards.vocab_size == vocab_size
        assert shards.sources == list(dict.fromkeys(source for _, _, source, _ in documents))
        assert shards.lengths.tolist() == [len(ids) for ids, *_ in documents]
        for (ids, mask, source, spans), read in zip(documents, shards, strict=True):
            assert read.tokens.dtype == np.int32 and read.loss_mask.dtype == np.bool_
            assert read.tokens.tolist() == ids.tolist()
            assert read.loss_mask.tolist() == (mask or [True] * len(ids))
            assert read.source == source
            expected = {label: sorted(ranges) for label, ranges in spans.items() if ranges}
            assert {label: [tuple(row) for row in ranges.tolist()] for label, ranges in read.spans.items()} == expected
        assert set(shards.labels) == {label for *_, spans in documents for label in spans}


def test_a_token_takes_two_bytes_where_they_suffice(tmp_path):
    sizes = []
    for vocab_size in (65_536, 65_537):
        with cwm.ShardWriter(tmp_path / str(vocab_size), vocab_size) as writer:
            writer.add(np.zeros(1 << 16, dtype=np.int32))
        sizes.append((tmp_path / str(vocab_size) / "00000.cwmtok").stat().st_size)
    assert sizes[1] - sizes[0] == (1 << 17) + 32 * 4  # and the checksums of 32 more pages


def test_a_tokenizer_gives_the_vocabulary(tmp_path):
    class Tokenizer:
        vocab_size = 77

    with cwm.ShardWriter(tmp_path, Tokenizer()) as writer:
        writer.add([76])
    assert cwm.Shards(tmp_path).vocab_size == 77


@pytest.fixture
def shards(tmp_path):
    with cwm.ShardWriter(tmp_path, 128) as writer:
        for i in range(20):
            spans = {"even": [[i, i + 20]], "odd": [[i + 1, i + 2], [0, 200]]}
            writer.add((np.arange(200) + i) % 128, np.arange(200) % 5 != i % 5, source=f"s{i % 2}", spans=spans)
    return tmp_path


@pytest.mark.parametrize(
    ("spans", "error", "message"),
    [
        ([[0, 3]], ValueError, r"span 0\.\.3 labeled .x. is empty or outside a document of 2 tokens"),
        ([[1, 1]], ValueError, r"span 1\.\.1 labeled .x. is empty"),
        ([[-1, 1]], ValueError, r"span -1\.\.1 labeled .x. is outside any document"),
        ([[0, 1, 2]], ValueError, "must have 2 columns, not 3"),
        ([0, 1], ValueError, "must have two dimensions, not 1"),
        ([[0.0, 1.0]], TypeError, "float64"),
    ],
)
def test_a_bad_span_is_refused_and_changes_nothing(tmp_path, spans, error, message):
    with cwm.ShardWriter(tmp_path, 128) as writer:
        with pytest.raises(error, match=message):
            writer.add([1, 2], spans={"x": spans})
        writer.add([2], spans={"x": []})
    assert [document.spans for document in cwm.Shards(tmp_path)] == [{}]


@pytest.mark.parametrize(
    ("ids", "mask", "error", "message"),
    [
        ([1, 128], None, ValueError, "token 1 has id 128, outside the vocabulary of 128"),
        ([-1], None, ValueError, "token 0 has id -1, outside any vocabulary"),
        ([1 << 40], None, ValueError, "outside any vocabulary"),
        ([], None, ValueError, "at least one token"),
        ([[1]], None, ValueError, "one dimension"),
        ([1.0], None, TypeError, "not float64"),
        ([1, 2], [True], ValueError, "loss_mask has 1 entries for 2 tokens"),
        ([1, 2], [1, 0], TypeError, "loss_mask must be bool"),
    ],
)
def test_a_bad_document_is_refused_and_changes_nothing(tmp_path, ids, mask, error, message):
    with cwm.ShardWriter(tmp_path, 128) as writer:
        writer.add([1])
        with pytest.raises(error, match=message):
            writer.add(ids, mask)
        writer.add([2])
    assert [document.tokens.tolist() for document in cwm.Shards(tmp_path)] == [[1], [2]]


def test_bad_writers_are_refused(shards, tmp_path_factory):
    with pytest.raises(FileExistsError, match=r"00000\.cwmtok: the folder already holds token shards"):
        cwm.ShardWriter(shards, 128)
    for vocab_size in (0, -1, 2**31 + 1):
        with pytest.raises(ValueError, match="vocab_size must"):
            cwm.ShardWriter(tmp_path_factory.mktemp("new"), vocab_size)
    writer = cwm.ShardWriter(tmp_path_factory.mktemp("new"), 128)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.add([1])


def test_an_exception_discards_the_shard_under_way_alone(tmp_path):
    with pytest.raises(RuntimeError), cwm.ShardWriter(tmp_path, 128, shard_tokens=2) as writer:
        writer.add([1, 2])
        writer.add([3, 4])
        raise RuntimeError
    assert os.listdir(tmp_path) == ["00000.cwmtok"]
    assert [document.tokens.tolist() for document in cwm.Shards(tmp_path)] == [[1, 2]]


KILLED = """
import sys, numpy as np, cwm_core as cwm
writer = cwm.ShardWriter(sys.argv[1], 1 << 20, shard_tokens=100_000, append=True)
i = writer.documents
while True:
    writer.add(np.full(1000, i, dtype=np.int32), spans={"all": [[0, 1000]]})
    i += 1
"""


def test_killed_writers_leave_complete_shards_and_others_append(tmp_path):
    """Kill writers at random moments, each going on where the one before was killed; nothing is lost or twice there."""
    rng, expected = np.random.default_rng(), 0
    for _ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path])
        first = tmp_path / f"{expected // 100:05}.cwmtok"
        deadline = time.monotonic() + 60
        while not first.exists():
            assert time.monotonic() < deadline and writer.poll() is None
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        shards = cwm.Shards(tmp_path)
        shards.verify()
        assert len(shards) > expected and len(shards) % 100 == 0
        expected = len(shards)
    assert all((document.tokens == i).all() for i, document in enumerate(shards))
    cwm.ShardWriter(tmp_path, 1 << 20, append=True).close()
    assert {path.suffix for path in tmp_path.iterdir()} == {".cwmtok"}  # what the killed left is removed


def test_a_full_disk_is_an_error_and_published_shards_stay(tmp_path):
    script = """
import resource, signal, sys, numpy as np, cwm_core as cwm
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
writer = cwm.ShardWriter(sys.argv[1], 1 << 20, shard_tokens=200_000)
writer.add(np.zeros(200_000, dtype=np.int32))
try:
    for _ in range(4):
        writer.add(np.zeros(1_000_000, dtype=np.int32))
except OSError as error:
    print(error.errno, error.filename)
try:
    writer.add([1])
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert run.stdout == f"{errno.EFBIG} {tmp_path}\nthe shard writer is closed\n"
    assert os.listdir(tmp_path) == ["00000.cwmtok"]
    assert cwm.Shards(tmp_path).tokens == 200_000


def test_writers_keep_out_of_each_others_way(tmp_path):
    first = cwm.ShardWriter(tmp_path, 128)
    first.add([1])
    with pytest.raises(BlockingIOError, match="another shard writer is using this folder"):
        cwm.ShardWriter(tmp_path, 128, append=True)
    if not (child := os.fork()):
        try:
            first.add([2])
        except ValueError:
            del first  # leaves the parent's file and lock alone
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    first.add([3])
    first.close()
    with cwm.ShardWriter(tmp_path, 128, append=True) as second:
        assert (second.documents, second.tokens) == (2, 2)
        second.add([4])
    assert [document.tokens.tolist() for document in cwm.Shards(tmp_path)] == [[1], [3], [4]]


def read_everything(folder):
    shards = cwm.Shards(folder)
    shards.verify()
    return [(document.tokens.tolist(), document.loss_mask.tolist(), document.source) for document in shards]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_or_a_cut_never_gives_wrong_tokens(shards_bytes, data):
    intact, documents = shards_bytes
    damaged = bytearray(intact)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(intact) - 1))
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del damaged[data.draw(st.integers(0, len(intact) - 1)) :]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "00000.cwmtok")
        with open(path, "wb") as file:
            file.write(damaged)
        with pytest.raises(ValueError, match=r"00000\.cwmtok: "):
            read_everything(folder)
        # Without verify(), a document read is right or an error.
        try:
            shards = cwm.Shards(folder)
        except ValueError:
            return
        for i, expected in enumerate(documents):
            try:
                assert shards[i].tokens.tolist() == expected
            except ValueError as error:
                assert "damaged page" in str(error)


@pytest.fixture(scope="module")
def shards_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    with cwm.ShardWriter(folder, 1000) as writer:
        for i in range(40):
            mask, spans = np.arange(200) % 5 != i % 5, {"a": [[i, 90]], "b": [[j, j + i + 1] for j in range(9)]}
            writer.add((np.arange(200) * 7 + i) % 1000, mask, f"s{i % 2}", spans)
    return (folder / "00000.cwmtok").read_bytes(), [document.tokens.tolist() for document in cwm.Shards(folder)]


def test_the_error_says_what_is_wrong(shards):
    path = shards / "00000.cwmtok"
    intact = path.read_bytes()
    for content, message in (
        (b"", "not a token shard"),
        (b"PK" + intact[2:], "not a token shard"),
        (intact[:8] + b"\x01" + intact[9:], "token shard version 1; this build reads version 2"),
        (intact[:100], "truncated: 100 bytes, shorter than a header"),
        (intact[:-1], f"truncated: {len(intact) - 1} bytes, the header describes {len(intact)}"),
        (intact + b"\0", "overlong"),
        (intact[:20] + b"\xff" + intact[21:], "damaged header"),
        (intact[:-1] + b"\xff", "damaged index"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            cwm.Shards(shards)
    path.write_bytes(intact)
    (shards / "00002.cwmtok").write_bytes(intact)
    with pytest.raises(ValueError, match=r"shard 00001\.cwmtok is missing"):
        cwm.Shards(shards)


def tokens_of(shards):
    return [document.tokens.tolist() for document in shards]


def test_processes_and_threads_read_the_same(shards):
    shards = cwm.Shards(shards)
    expected = tokens_of(shards)
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(tokens_of, [shards]) == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tokens_of, [shards] * 8)) == [expected] * 8


def test_indices(shards):
    shards = cwm.Shards(shards)
    assert shards[-1].tokens.tolist() == shards[19].tokens.tolist()
    for index in (20, -21):
        with pytest.raises(IndexError):
            shards[index]


def test_integers_of_numpy_and_single_strings(tmp_path):
    with cwm.ShardWriter(tmp_path / "a", np.int64(500), shard_tokens=np.int64(1000)) as writer:
        with pytest.raises(TypeError, match="sources: expected several strings"):
            writer.add_many([1, 2], [0, 2], sources="tag")
        writer.add([1, 2], source="a\ud800", spans={"\udfff": [[0, 1]]})
        writer.add_many([3, 4], [0, 2], sources=["\ud83d\ude00"])
    shards = cwm.Shards(tmp_path / "a", vocab_size=np.int32(500))
    assert (shards.sources, shards.labels) == (["a\ufffd", "\U0001f600"], ["\ufffd"])
    assert shards[np.int64(1)].tokens.tolist() == [3, 4]
